"""What equal means: two runs differ by rounding alone, or by nothing.

In float32 a difference is told in roundings: the largest one in a tensor, divided by float32's epsilon and by the
tensor's largest magnitude. A gradient that is zero but for rounding (of the keys' bias in attention, which softmax
ignores) has no magnitude of its own, so a tensor's scale is at least `FLOOR` of the largest of its kind.

In bfloat16 rounding is as large as what is looked for, so a run is as good as another if it is as near to the run in
float32: |other - reference| is at most three times |plain - reference|, over tensors of a kind whose names end alike.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from traces import Trace

ROUNDINGS = 1024
"""Largest difference that is accepted in float32: 1.2e-4. Single operations differ by one or two; three steps of a
model whose every weight matters enlarge that, most of all where attention is sharp."""

FLOOR = 1e-2
"""Of the largest magnitude of a kind: the least that a tensor's difference is divided by."""

RATIO, LEAST = 3.0, 1e-3
"""In bfloat16: so many times the plain run's own distance from float32, and at least a quarter of bfloat16's epsilon.
Most runs are at 1, a gradient of few numbers after two steps was at 2.5."""

EPS = torch.finfo(torch.float32).eps


def require_same_names(one: Trace, other: Trace) -> None:
    """Fail where one run has numbers that the other lacks; runs of a divided model have no gradients."""
    first, second = one.tensors(), other.tensors()
    assert len(one.losses) == len(other.losses) > 0
    for kind in first.keys() & second.keys():
        assert first[kind].keys() == second[kind].keys(), kind
        assert [t.shape for t in first[kind].values()] == [second[kind][n].shape for n in first[kind]], kind


def roundings(one: Trace, other: Trace) -> tuple[float, str]:
    """Return the largest difference of two runs, in roundings, and where it is."""
    require_same_names(one, other)
    worst = (0.0, "nothing")
    first, second = one.tensors(), other.tensors()
    for kind in [kind for kind in first if kind in second]:
        largest = max(_size(tensor) for tensor in first[kind].values())
        for name, tensor in first[kind].items():
            scale = max(_size(tensor), FLOOR * largest)
            apart = _size(tensor.double() - second[kind][name].double())
            if apart:
                worst = max(worst, (apart / scale / EPS if scale else float("inf"), f"{kind} {name}"))
    return worst


def ratio(reference: Trace, plain: Trace, other: Trace) -> tuple[float, str]:
    """Return how far a run in bfloat16 is from float32, in the plain run's distance, where that is worst."""
    require_same_names(reference, plain)
    require_same_names(reference, other)
    exact, first, second, worst = reference.tensors(), plain.tensors(), other.tensors(), (0.0, "nothing")
    for kind in [kind for kind in exact if kind in second]:
        least = FLOOR * _norm(exact[kind].values())
        for ending in dict.fromkeys(name.rpartition(".")[2] for name in exact[kind]):
            names = [name for name in exact[kind] if name.rpartition(".")[2] == ending or kind == "loss"]
            scale = max(_norm(exact[kind][name] for name in names), least)
            own, theirs = (
                _norm(found[kind][name].double() - exact[kind][name].double() for name in names) / scale
                for found in (first, second)
            )
            worst = max(worst, (theirs / (own + LEAST / RATIO), f"{kind} {ending}"))
    return worst


def same_bits(one: Trace, other: Trace) -> tuple[float, str]:
    """Return 0.0 where two runs have the same bits, else infinity and where they differ first."""
    require_same_names(one, other)
    first, second = one.tensors(), other.tensors()
    for kind in [kind for kind in first if kind in second]:
        for name, tensor in first[kind].items():
            if not torch.equal(tensor, second[kind][name]):
                return float("inf"), f"{kind} {name}"
    return 0.0, "nothing"


def _size(tensor: Tensor) -> float:
    return float(tensor.double().abs().max()) if tensor.numel() else 0.0


def _norm(tensors: Iterable[Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5
