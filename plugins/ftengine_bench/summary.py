"""The headline: how much of the avoidable overhead a whole transformer block recovers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ftengine_bench.figures import least_overhead, recovered
from ftengine_bench.report import Row
from ftengine_bench.shapes import Shape


@dataclass(frozen=True)
class Block:
    """One provider on all `layers` of a block, forward and backward; fields as those of a `Row`."""

    m: int
    rank: int
    dtype: str
    p: float
    provider: str
    layers: int
    overhead: float
    recovered: float | None


def blocks(rows: Iterable[Row]) -> list[Block]:
    """Add up the layers of a preset, each as often as a block has it."""
    cells: dict[tuple[int, int, str, float], dict[str, list[Row]]] = {}
    for row in rows:
        if row.phase == "both" and row.layers:
            cells.setdefault((row.m, row.rank, row.dtype, row.p), {}).setdefault(row.provider, []).append(row)
    found = []
    for (m, rank, dtype, p), by_provider in cells.items():
        weights = {row.layer: len(row.layers) * row.p50 for row in by_provider["frozen"]}
        frozen = sum(weights.values())
        floor = sum(
            weights[row.layer] * least_overhead(Shape(row.m, row.k, row.n), rank, "both")
            for row in by_provider["frozen"]
        )
        overhead = {
            provider: sum(weights[row.layer] * row.overhead for row in members) / frozen
            for provider, members in by_provider.items()
            if len(members) == len(weights)
        }
        for provider, value in overhead.items():
            layers = sum(len(row.layers) for row in by_provider["frozen"])
            share = None
            if "eager" in overhead and provider not in ("frozen", "eager"):
                share = recovered(overhead["eager"], value, floor / frozen)
            found.append(Block(m, rank, dtype, p, provider, layers, value, share))
    return found
