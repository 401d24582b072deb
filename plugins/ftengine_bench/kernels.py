"""The measurement of every provider on every layer of the settings, and of each operator."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from itertools import product

import torch

from ftengine.ops import active_backend, draw_seed, use_instruction_set
from ftengine_bench.figures import PHASES, least_bytes, least_overhead, operations, recovered, roofline
from ftengine_bench.layers import MAY_FAIL, PROVIDERS, SCALE, WITHOUT_DROPOUT, Layer, Step, capture
from ftengine_bench.machine import Peak, machine, measure_peak
from ftengine_bench.memory import peak_bytes, saved_bytes
from ftengine_bench.report import OperatorRow, Report, Row
from ftengine_bench.settings import Settings
from ftengine_bench.timing import Clock, clock_of, measure, paired_difference, paired_ratio, spread

TINY = 1e-6  # a scale at which thousands of merges into one weight leave it as large as it was

Progress = Callable[[str, int, int], object]
"""Told what is being measured, how much of it is done, and of how much."""


def measure_kernels(
    settings: Settings, progress: Progress, keep: Callable[[Report], object] = lambda report: None
) -> Report:
    """Run the measurements of the settings.

    Args:
        settings: from `Settings.parse`.
        progress: called with each measurement.
        keep: called with the partial report after every layer and dropout, so that an interruption does not lose it.
    """
    with nullcontext() if settings.instruction_set == "auto" else use_instruction_set(settings.instruction_set):
        device, clock, seconds = settings.device, clock_of(settings.device), settings.seconds
        asked = settings.to_json()
        report = Report(complete=False, environment=machine(device), settings=asked, peaks=[], rows=[], operators=[])
        peaks = {}
        for done, dtype in enumerate(settings.dtypes, 1):
            peaks[dtype] = measure_peak(dtype, device, clock, seconds)
            report.peaks.append(asdict(peaks[dtype]))
            progress("measuring what the device can do", done, len(settings.dtypes))

        cases = list(product(settings.shapes, settings.dtypes, settings.ranks))
        for done, (shape, dtype, rank) in enumerate(cases, 1):
            for p in settings.dropouts:
                layer = Layer.make(shape, rank, dtype, p, device)
                steps = prepare(settings.providers, layer, asked["left_out"], settings.launch == "graph")
                report.rows.extend(measure_layer(layer, steps, peaks[dtype], clock, seconds))
                keep(report)
            report.operators.extend(measure_operators(layer, settings.dropouts, peaks[dtype], clock, seconds))
            keep(report)
            progress("measuring layers", done, len(cases))
        report = replace(report, complete=True)
        keep(report)
        return report


def prepare(names: tuple[str, ...], layer: Layer, left_out: dict[str, str], graphs: bool = False) -> dict[str, Step]:
    """Build the providers' steps and run each once, or capture it in CUDA graphs.

    One of MAY_FAIL that does not work here goes into left_out, with the reason, and is not tried again.
    """
    steps = {}
    for name in names:
        if name in left_out or (layer.p and name in WITHOUT_DROPOUT):
            continue
        try:
            step = PROVIDERS[name](layer)
            step.forward()
            step.backward()
            if graphs:
                capture(step)
        # A compiler that lacks its own compiler raises anything. Nobody else is excused.
        except Exception as error:
            if name not in MAY_FAIL:
                raise
            left_out[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        step.clear()
        steps[name] = step
    return steps


def measure_layer(layer: Layer, steps: dict[str, Step], peak: Peak, clock: Clock, seconds: float) -> list[Row]:
    """Measure the memory of each provider on one layer, then time them in turn."""
    shape = layer.shape
    held = {name: (peak_bytes(step, layer.x.device.type), saved_bytes(step)) for name, step in steps.items()}
    actions = {name: step.parts for name, step in steps.items()}
    times = measure(actions, clock, seconds, clear=lambda name: steps[name].clear())
    rows = []
    for phase, parts_of in PHASES.items():
        taken = {name: [sum(parts[parts_of]) for parts in repetitions] for name, repetitions in times.items()}
        overhead = {name: paired_ratio(values, taken["frozen"]) for name, values in taken.items()}
        for name, (peaks, saved) in held.items():
            rank = 0 if name == "frozen" else len(layer.a)
            computed = operations(shape, rank, phase)
            moved = least_bytes(shape, rank, phase, layer.x.itemsize, steps[name].inputs[-1].itemsize)
            percentiles = spread(taken[name])
            least = roofline(computed, moved, peak.operations_a_second, peak.copy_bytes_a_second)
            rows.append(
                Row(
                    **layer.described,
                    **percentiles,
                    layers=list(shape.layers),
                    transposed=shape.transposed,
                    phase=phase,
                    provider=name,
                    repetitions=len(taken[name]),
                    overhead=overhead[name],
                    recovered=recovered(name, overhead, least_overhead(shape, len(layer.a), phase)),
                    peak_bytes=peaks[phase],
                    saved_bytes=saved,
                    operations=computed,
                    bytes=moved,
                    roofline_share=least / percentiles["p50"],
                )
            )
    return rows


Call = tuple[Callable[[], object], int]
"""A call of an operator, and the bytes that it moves at least."""


def operator_calls(layer: Layer, dropouts: tuple[float, ...]) -> dict[tuple[str, float], Call]:
    """Return the calls of every operator on one layer, by name and dropout p."""
    x, a, b, dy = (tensor.detach() for tensor in (layer.x, layer.a, layer.b, layer.dy))
    ops, weight, seed = torch.ops.ftengine, layer.weight.contiguous(), draw_seed(x.device)
    s, y, dx = ops.lowrank_shrink(x, a, 0.0, None), torch.zeros_like(dy), torch.zeros_like(x)
    ds = s.clone()
    calls: dict[tuple[str, float], Call] = {}
    for p in dropouts:
        drawn = seed if p else None
        shrink, backward = ops.lowrank_shrink, ops.lowrank_backward_input_
        calls["lowrank_shrink", p] = partial(shrink, x, a, p, drawn), x.nbytes + a.nbytes + s.nbytes
        moved = x.nbytes + 2 * dx.nbytes + ds.nbytes + 2 * a.nbytes
        calls["lowrank_backward_input_", p] = partial(backward, dx, x, ds, a, p, drawn), moved
    expand, backward = partial(ops.lowrank_expand_, y, s, b, SCALE), partial(ops.lowrank_backward_output, dy, s, b)
    calls["lowrank_expand_", 0.0] = expand, 2 * y.nbytes + s.nbytes + b.nbytes
    calls["lowrank_backward_output", 0.0] = partial(backward, SCALE), dy.nbytes + 2 * s.nbytes + 2 * b.nbytes
    merge = partial(ops.lowrank_merge_, weight, a, b, TINY)
    calls["lowrank_merge_", 0.0] = merge, 2 * weight.nbytes + a.nbytes + b.nbytes
    return calls


def measure_operators(
    layer: Layer, dropouts: tuple[float, ...], peak: Peak, clock: Clock, seconds: float
) -> list[OperatorRow]:
    """Time every operator on one layer, all of them in turn.

    They are bound by memory, so they are compared with the bandwidth of a plain copy.
    """
    calls = operator_calls(layer, tuple(dict.fromkeys((0.0, *dropouts))))
    times = measure({case: [call] for case, (call, _) in calls.items()}, clock, seconds)
    seconds_of = {case: [parts[0] for parts in repetitions] for case, repetitions in times.items()}
    device = layer.x.device.type
    rows = []
    for (name, p), (_, moved) in calls.items():
        taken, random_ns = spread(seconds_of[name, p]), None
        if name == "lowrank_shrink" and p and device == "cpu":
            added = paired_difference(seconds_of[name, p], seconds_of[name, 0.0])
            random_ns = added * 1e9 * torch.get_num_threads() / layer.x.numel()
        bandwidth = moved / taken["p50"]
        rows.append(
            OperatorRow(
                **{**layer.described, "p": p},
                **taken,
                operator=name,
                backend=active_backend(device)[0],
                bytes=moved,
                bandwidth=bandwidth,
                copy_share=bandwidth / peak.copy_bytes_a_second,
                random_ns=random_ns,
            )
        )
    return rows
