"""Compares the rate and the scale of a fast path's dropout with the model's own, over several passes.

Each input x of a module is compared with its input a without dropout: x = c·a + r with c = ⟨x, a⟩ / ⟨a, a⟩. Over many
masks, the mean of c shows whether the remaining values are scaled by 1 / (1 - p), and the mean of ‖r‖² / ‖a‖² how much
is dropped. The same holds for the gradient of each parameter, which has the same masks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from ftengine.equivalence import DROPPED, distance
from ftengine.model import trainable
from ftengine.model.modes import drops
from ftengine.text import number
from ftengine.training.probe import Computation, ProbeBatch

RAISED = 0.5
"""The probability of dropout during the measurement; smaller ones have too little effect."""

PASSES, AGAIN = 8, 16
"""Passes of each computation, and more passes if these differ."""

ERRORS = 7.0
"""Two means differ if they are more than so many standard errors and `DROPPED` of their size apart."""

Values = dict[str, Tensor]
Statistics = Mapping[str, np.ndarray]
"""For each value, (passes, 2) with c and ‖r‖² / ‖a‖²."""


def dropout_fault(probe: ProbeBatch, computation: Computation) -> str:
    """Return where a computation drops another share than the model, or scales differently; "" if nowhere."""
    module = probe.loaded.module
    with _with_dropout(module, 0.0):
        reference = _alike(_without_dropout(probe, None), _without_dropout(probe, computation))
    with _with_dropout(module, RAISED) as drops:
        if not drops:
            return ""
        first, suspects = 0, list[tuple[str, int]]()
        for passes in (PASSES, AGAIN):
            seeds = range(first, first + passes)
            own, other = (_statistics(probe, candidate, reference, seeds) for candidate in (None, computation))
            differing = _differing(own, other)
            if passes == AGAIN:
                differing = [name_and_kind for name_and_kind in differing if name_and_kind in suspects]
            if not differing:
                return ""
            first, suspects = first + passes, differing
    name, kind = suspects[0]
    measured, mean = (float(statistics[name][:, kind].mean()) for statistics in (other, own))
    effect = ("are scaled by", "vary by")[kind]
    return (
        f"with dropout of {RAISED:g}, {name} {effect} {number(measured)} in the mean over {AGAIN} passes, but by "
        f"{number(mean)} in the model itself: keep a share of 1 - p, scaled by 1 / (1 - p), in the forward and "
        "the backward pass"
    )


def _without_dropout(probe: ProbeBatch, computation: Computation | None) -> Values:
    with probe.computing(training=True, computation=computation) as around:
        _values(probe, around, 0)  # the first pass of a fast path may also probe the model
        return _values(probe, around, 0)


def _alike(own: Values, other: Values) -> Values:
    """Return the model's values that the other computation reproduces; others may have another layout."""
    return {name: a for name, a in own.items() if name in other and distance(other[name], a) <= DROPPED}


@contextmanager
def _with_dropout(module: nn.Module, probability: float) -> Iterator[bool]:
    """Set all dropout probabilities of a model; yield whether it has dropout."""
    places = [(part, *rate) for part in module.modules() for rate in drops(part).items()]
    for part, name, _ in places:
        setattr(part, name, probability)
    try:
        yield bool(places)
    finally:
        for part, name, value in places:
            setattr(part, name, value)


def _statistics(probe: ProbeBatch, computation: Computation | None, reference: Values, seeds: range) -> Statistics:
    statistics = defaultdict[str, list[tuple[float, float]]](list)
    with probe.computing(training=True, computation=computation) as around:
        for seed in seeds:
            for name, x in _values(probe, around, seed).items():
                a = reference.get(name)
                if a is None or a.shape != x.shape or not (size := float(a.square().sum())):
                    continue
                scale = float((x * a).sum()) / size
                statistics[name].append((scale, float((x - scale * a).square().sum()) / size))
    return {name: np.array(values) for name, values in statistics.items() if len(values) == len(seeds)}


def _values(probe: ProbeBatch, around: Any, seed: int) -> Values:
    """Return the inputs of each module in a pass, and the gradients of the trainable parameters."""
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
    """Return the names of values whose means differ, with 0 for c or 1 for ‖r‖² / ‖a‖², in the order of computation."""
    differing = []
    for name in own:
        if name not in other:
            continue
        for kind in (0, 1):
            mine, two = own[name][:, kind], other[name][:, kind]
            error = ((mine.var(ddof=1) + two.var(ddof=1)) / len(mine)) ** 0.5
            if abs(mine.mean() - two.mean()) > ERRORS * error + DROPPED * max(abs(mine.mean()), kind * 1e-3):
                differing.append((name, kind))
    return differing
