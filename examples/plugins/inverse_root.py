"""A schedule. The warm-up is the engine's: `factor` is asked for the steps after it."""

from ftengine.api import Schedule


class InverseRoot(Schedule):
    """Let the learning rate fall as 1 / √step (Vaswani et al. 2017, §5.3)."""

    name = "inverse-root"

    def factor(self, step, steps, warmup):
        return (max(1, warmup) / max(1, step)) ** 0.5
