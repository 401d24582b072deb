"""Each low-rank operator alone: they are bound by memory, so the measure is the bandwidth of a plain copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ftengine.ops import active_backend, draw_seed
from ftengine_bench.peaks import Peak
from ftengine_bench.providers import SCALE, Layer
from ftengine_bench.timing import Action, Clock, Spread, measure, paired_difference

TINY = 1e-6  # a scale at which thousands of merges into one weight leave it as large as it was


@dataclass(frozen=True)
class OperatorRow:
    """An operator on one layer; docs/benchmarks.md says what each field means, and in which unit."""

    m: int
    k: int
    n: int
    rank: int
    dtype: str
    p: float
    operator: str
    backend: str
    p20: float
    p50: float
    p80: float
    bytes: int
    bandwidth: float
    copy_share: float
    random_ns: float | None


Call = tuple[str, float, Callable[[], object], int]
"""Operator, p, the call, and the bytes that it moves at least."""


def operator_calls(layer: Layer, dropouts: tuple[float, ...]) -> list[Call]:
    """Return the calls of every operator on one layer, with each dropout where it has one."""
    x, a, b, dy = (tensor.detach() for tensor in (layer.x, layer.a, layer.b, layer.dy))
    weight, s, seed = layer.weight.contiguous(), torch.ops.ftengine.lowrank_shrink(x, a, 0.0, None), draw_seed(x.device)
    y, dx = torch.zeros_like(dy), torch.zeros_like(x)
    ds = s.clone()
    ops = torch.ops.ftengine
    calls: list[Call] = []
    for p in dropouts:
        drawn = seed if p else None
        calls += [
            ("lowrank_shrink", p, partial(ops.lowrank_shrink, x, a, p, drawn), x.nbytes + a.nbytes + s.nbytes),
            (
                *("lowrank_backward_input_", p, partial(ops.lowrank_backward_input_, dx, x, ds, a, p, drawn)),
                x.nbytes + 2 * dx.nbytes + ds.nbytes + 2 * a.nbytes,
            ),
        ]
    backward, merge = partial(ops.lowrank_backward_output, dy, s, b, SCALE), partial(ops.lowrank_merge_, weight, a, b)
    return [
        *calls,
        ("lowrank_expand_", 0.0, partial(ops.lowrank_expand_, y, s, b, SCALE), 2 * y.nbytes + s.nbytes + b.nbytes),
        ("lowrank_backward_output", 0.0, backward, dy.nbytes + 2 * s.nbytes + 2 * b.nbytes),
        ("lowrank_merge_", 0.0, partial(merge, TINY), 2 * weight.nbytes + a.nbytes + b.nbytes),
    ]


def measure_operators(
    layer: Layer, dropouts: tuple[float, ...], device: str, peak: Peak, clock: Clock, seconds: float
) -> list[OperatorRow]:
    """Time every operator on one layer, all of them in turn."""
    calls = operator_calls(layer, tuple(dict.fromkeys((0.0, *dropouts))))
    times = measure({f"{name} {p}": Action([call]) for name, p, call, _ in calls}, clock, seconds)
    seconds_of = {key: [parts[0] for parts in repetitions] for key, repetitions in times.items()}
    backend, _ = active_backend(device)
    rows = []
    for name, p, _, moved in calls:
        spread = Spread.of(seconds_of[f"{name} {p}"])
        random_ns = None
        if name == "lowrank_shrink" and p and device == "cpu":
            added = paired_difference(seconds_of[f"{name} {p}"], seconds_of[f"{name} 0.0"])
            random_ns = added * 1e9 * torch.get_num_threads() / layer.x.numel()
        rows.append(
            OperatorRow(
                **{**layer.described, "p": p},
                operator=name,
                backend=backend,
                p20=spread.p20,
                p50=spread.p50,
                p80=spread.p80,
                bytes=moved,
                bandwidth=moved / spread.p50,
                copy_share=moved / spread.p50 / peak.copy_bytes_a_second,
                random_ns=random_ns,
            )
        )
    return rows
