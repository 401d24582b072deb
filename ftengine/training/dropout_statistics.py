"""Whether dropout that a fast path draws has the rate and the mean of the model's own, measured over several passes.

Each value x that a module is given is compared with a, what it is given without dropout: x = c·a + r with
c = ⟨x, a⟩ / ⟨a, a⟩. Over masks the mean of c says whether what is kept is scaled by 1 / (1 - p), and that of
‖r‖² / ‖a‖² how much is dropped; likewise of the gradient of each parameter, which goes by the same masks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ftengine.equivalence import DROPPED, distance
from ftengine.model import trainable
from ftengine.model.modes import drops
from ftengine.training.probe import ProbeBatch, Way

RAISED = 0.5
"""The probability of dropout while it is measured: where little is dropped, little shows."""

PASSES, AGAIN = 8, 16
"""Passes of either way, and more of them where these differ."""

ERRORS = 7.0
"""Two means differ by so many standard errors, and by `DROPPED` of their size, where masks are not drawn alike."""

Values = dict[str, Tensor]
Statistics = Mapping[str, np.ndarray]
"""Of each value its c and ‖r‖² / ‖a‖², (passes, 2)."""


def dropout_fault(probe: ProbeBatch, way: Way) -> str:
    """Say where a way drops another share than the model does, or scales it otherwise; "" nowhere."""
    module = probe.loaded.module
    with _with_dropout(module, 0.0):
        reference = _alike(_without_dropout(probe, None), _without_dropout(probe, way))
    with _with_dropout(module, RAISED) as drops:
        if not drops:
            return ""
        first, suspects = 0, list[tuple[str, int]]()
        for passes in (PASSES, AGAIN):
            seeds = range(first, first + passes)
            own, other = (_statistics(probe, one, reference, seeds) for one in (None, way))
            found = _differing(own, other)
            if passes == AGAIN:
                found = [one for one in found if one in suspects]
            if not found:
                return ""
            first, suspects = first + passes, found
    name, kind = suspects[0]
    told, mean = (float(one[name][:, kind].mean()) for one in (other, own))
    what = ("are scaled by", "vary by")[kind]
    return (
        f"with dropout of {RAISED:g}, {name} {what} {told:.3g} in the mean over {AGAIN} passes, in the model itself by "
        f"{mean:.3g}: keep a share of 1 - p, scaled by 1 / (1 - p), forwards and backwards"
    )


class DropoutCalls(TorchFunctionMode):
    """Counts the calls of torch's dropout that drop something, and of its attention with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, named = getattr(func, "__name__", ""), kwargs or {}
        if name == "dropout":
            p = named.get("p", args[1] if len(args) > 1 else 0.5)
            self.count += p > 0 and named.get("training", args[2] if len(args) > 2 else True)
        elif name == "scaled_dot_product_attention":
            self.count += named.get("dropout_p", args[4] if len(args) > 4 else 0.0) > 0
        return func(*args, **named)


def fewer_calls(probe: ProbeBatch, way: Way) -> bool:
    """Say whether a way calls torch's dropout less often than the model itself, so that something else drops."""
    counts = []
    for one in (None, way):
        with torch.no_grad(), probe.computing(training=True, way=one) as around, DropoutCalls() as calls:
            probe.loss(around)
        counts.append(calls.count)
    return counts[1] < counts[0]


def _without_dropout(probe: ProbeBatch, way: Way | None) -> Values:
    with probe.computing(training=True, way=way) as around:
        _values(probe, around, 0)  # with its first pass a model may be tried on something else
        return _values(probe, around, 0)


def _alike(own: Values, other: Values) -> Values:
    """Return the values that a way computes as the model does: it may lay out others in another order."""
    return {name: a for name, a in own.items() if name in other and distance(other[name], a) <= DROPPED}


@contextmanager
def _with_dropout(module: nn.Module, probability: float) -> Iterator[bool]:
    """Set all probabilities of a model's dropout; yields whether there are any."""
    places = [(part, *rate) for part in module.modules() for rate in drops(part).items()]
    for part, name, _ in places:
        setattr(part, name, probability)
    try:
        yield bool(places)
    finally:
        for part, name, value in places:
            setattr(part, name, value)


def _statistics(probe: ProbeBatch, way: Way | None, reference: Values, seeds: range) -> Statistics:
    found = defaultdict[str, list[tuple[float, float]]](list)
    with probe.computing(training=True, way=way) as around:
        for seed in seeds:
            for name, x in _values(probe, around, seed).items():
                a = reference.get(name)
                if a is None or a.shape != x.shape or not (size := float(a.square().sum())):
                    continue
                scale = float((x * a).sum()) / size
                found[name].append((scale, float((x - scale * a).square().sum()) / size))
    return {name: np.array(values) for name, values in found.items() if len(values) == len(seeds)}


def _values(probe: ProbeBatch, around: Any, seed: int) -> Values:
    """Return what each module is given in a pass, and the gradients of what trains."""
    module, values = probe.loaded.module, Values()

    def look(name: str, inputs: tuple[Any, ...]) -> None:
        first = next((x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()), None)
        if first is not None:
            values.setdefault(f"the inputs of {name!r}", first.detach().flatten().double())

    handles = [
        part.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs))
        for name, part in module.named_modules()
    ]
    try:
        probe.loss(around, seed).backward()
        for name, parameter in trainable(module).items():
            if parameter.grad is not None:
                values[f"gradients of {name!r}"] = parameter.grad.detach().flatten().double()
        return values
    finally:
        for handle in handles:
            handle.remove()
        module.zero_grad(set_to_none=True)


def _differing(own: Statistics, other: Statistics) -> list[tuple[str, int]]:
    """Return the names of values whose means differ, and in which of the two, in the order in which they come."""
    found = []
    for name in own:
        if name not in other:
            continue
        for kind in (0, 1):
            one, two = own[name][:, kind], other[name][:, kind]
            error = ((one.var(ddof=1) + two.var(ddof=1)) / len(one)) ** 0.5
            if abs(one.mean() - two.mean()) > ERRORS * error + DROPPED * max(abs(one.mean()), kind * 1e-3):
                found.append((name, kind))
    return found
