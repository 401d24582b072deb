"""The measurement: every provider on every layer that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

from ftengine.ops import use_instruction_set
from ftengine_bench.figures import PHASES, least_bytes, least_overhead, operations, recovered, roofline
from ftengine_bench.machine import machine
from ftengine_bench.memory import peak_bytes, saved_bytes
from ftengine_bench.operators import measure_operators
from ftengine_bench.peaks import Peak, measure_peak
from ftengine_bench.providers import PROVIDERS, Layer, Step
from ftengine_bench.report import Report, Row
from ftengine_bench.settings import Settings
from ftengine_bench.shapes import Shape
from ftengine_bench.timing import Action, Clock, Spread, clock_of, measure, paired_ratio

Progress = Callable[[str, int, int], object]
"""Told what is being measured, how much of it is done, and of how much."""


def measure_kernels(
    settings: Settings, progress: Progress, keep: Callable[[Report], object] = lambda report: None
) -> Report:
    """Measure what the settings ask for.

    Args:
        settings: from `Settings.parse`.
        progress: told of everything that is done.
        keep: given the report after every layer, as far as it is, so that an interrupted measurement is not lost.
    """
    with nullcontext() if settings.instruction_set == "auto" else use_instruction_set(settings.instruction_set):
        device, clock, seconds = settings.device, clock_of(settings.device), settings.seconds
        left_out = dict(settings.left_out)
        report = Report(
            complete=False,
            environment=machine(device),
            settings={**settings.to_json(), "left_out": left_out},
            peaks=[],
            rows=[],
            operators=[],
        )
        peaks = {}
        for done, dtype in enumerate(settings.dtypes, 1):
            peaks[dtype] = measure_peak(dtype, device, clock, seconds)
            report.peaks.append(asdict(peaks[dtype]))
            progress("measuring what the device can do", done, len(settings.dtypes))

        cases = [
            (shape, rank, dtype) for shape in settings.shapes for dtype in settings.dtypes for rank in settings.ranks
        ]
        for done, (shape, rank, dtype) in enumerate(cases, 1):
            for p in settings.dropouts:
                layer = Layer.make(shape, rank, dtype, p, device)
                steps = prepare(settings.providers, layer, left_out)
                report.rows.extend(measure_layer(shape, layer, steps, peaks[dtype], clock, seconds))
            operators = measure_operators(layer, settings.dropouts, device, peaks[dtype], clock, seconds)
            report.operators.extend(asdict(row) for row in operators)
            keep(report)
            progress("measuring layers", done, len(cases))
        report = replace(report, complete=True)
        keep(report)
        return report


def prepare(names: tuple[str, ...], layer: Layer, left_out: dict[str, str]) -> dict[str, Step]:
    """Build the providers' steps and run each once.

    A torch.compile that does not work here goes into left_out, with the reason, and is not tried again.
    """
    steps = {}
    for name in names:
        if name in left_out:
            continue
        step = PROVIDERS[name](layer)
        try:
            step.forward()
            step.backward()
        # A compiler that lacks its own compiler raises anything. Nobody else is excused.
        except Exception as error:
            if name != "torch-compile":
                raise
            left_out[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        step.clear()
        steps[name] = step
    return steps


def measure_layer(
    shape: Shape, layer: Layer, steps: dict[str, Step], peak: Peak, clock: Clock, seconds: float
) -> list[Row]:
    """Time the providers of one layer in turn, then look at the memory of each."""
    times = measure(
        {name: Action([step.forward, step.backward], step.clear) for name, step in steps.items()}, clock, seconds
    )
    rows = []
    for name, step in steps.items():
        forward, backward = peak_bytes(step, layer.x.device.type)
        peaks = {"forward": forward, "backward": backward, "both": max(forward, backward)}
        saved = saved_bytes(step)
        for phase in PHASES:
            seconds_of = {provider: phase_seconds(times[provider], phase) for provider in times}
            rows.append(
                Row(
                    **layer.described,
                    layers=list(shape.layers),
                    transposed=shape.transposed,
                    phase=phase,
                    provider=name,
                    peak_bytes=peaks[phase],
                    saved_bytes=saved,
                    **time_figures(shape, layer, name, phase, seconds_of, peak),
                )
            )
    return rows


def time_figures(
    shape: Shape, layer: Layer, name: str, phase: str, seconds_of: dict[str, list[float]], peak: Peak
) -> dict[str, Any]:
    """Return the fields of a row that follow from the seconds of each provider in one phase."""
    rank = layer.a.shape[0]
    computed = operations(shape, 0 if name == "frozen" else rank, phase)
    moved = least_bytes(shape, 0 if name == "frozen" else rank, phase, layer.x.itemsize, layer.a.itemsize)
    spread = Spread.of(seconds_of[name])
    overhead = {provider: paired_ratio(seconds, seconds_of["frozen"]) for provider, seconds in seconds_of.items()}
    gain = None
    if "eager" in overhead and name not in ("frozen", "eager"):
        gain = recovered(overhead["eager"], overhead[name], least_overhead(shape, rank, phase))
    return {
        **asdict(spread),
        "overhead": overhead[name],
        "recovered": gain,
        "operations": computed,
        "bytes": moved,
        "roofline_share": roofline(computed, moved, peak.operations_a_second, peak.copy_bytes_a_second) / spread.p50,
    }


def phase_seconds(repetitions: list[list[float]], phase: str) -> list[float]:
    """Return the seconds of each repetition, (forward, backward), in one phase."""
    chosen = {"forward": slice(0, 1), "backward": slice(1, 2), "both": slice(0, 2)}[phase]
    return [sum(parts[chosen]) for parts in repetitions]
