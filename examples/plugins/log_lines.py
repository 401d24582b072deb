"""Callbacks.

One that raises is named and left out, and the run goes on. One that has to end the run raises
`ftengine.errors.TrainingError`: the command ends with status 1, the last checkpoint is kept, and `--resume` goes on
from it. Random generators are afterwards what they were before each event. A resumed run goes on from its last
checkpoint, and steps after it come again: a file that a callback writes by itself is its own to cut there.
"""

from ftengine.api import Callback


class LogLines(Callback):
    """Write a line each step."""

    name = "log-lines"

    def on_step_end(self, event):
        print(f"step {event.step}: loss {event.figures['loss']:.4f}")


class LogGradients(Callback):
    """Write the largest gradient of each step; `norm` is that before clipping."""

    name = "log-gradients"

    def on_pre_optimizer_step(self, event):
        norms = {name: float(p.grad.norm()) for name, p in event.model.named_parameters() if p.grad is not None}
        print(f"step {event.step}: {max(norms, key=norms.get)} has {max(norms.values()):.2e} of {event.norm:.2e}")
