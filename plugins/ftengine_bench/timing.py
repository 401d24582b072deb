"""Timing of several actions in turn, so that disturbances of the machine affect all of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch

WARM_UP = 3
"""Repetitions that are not counted."""

LEAST = 7
"""Repetitions that count, at least: fewer have no 20th and 80th percentile worth the name."""

MOST = 2000
"""Repetitions that count, at most."""


class Clock:
    """A clock for CPUs, on which calls return after they have computed."""

    def ready(self) -> None:
        """Bring the device into the state before every repetition."""

    def mark(self) -> Any:
        """Record the present time."""
        return time.perf_counter_ns()

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Return the seconds from each mark to the next."""
        return [(after - before) / 1e9 for before, after in pairwise(marks)]


class CudaClock(Clock):
    """A clock for NVIDIA GPUs, by events in the stream."""

    # Larger than any L2 cache (H100: 50 MB, B200: 126 MB). Read, not written: what lies in L2 written has to leave it
    # within the time that is measured.
    FLUSHED_BYTES = 512 << 20

    # About a millisecond: the CPU, which launches what is measured, is ahead of the GPU by then.
    HEAD_START = 2_000_000  # cycles

    def __init__(self) -> None:
        self._flushed = torch.zeros(self.FLUSHED_BYTES // 4, dtype=torch.float32, device="cuda")

    def ready(self) -> None:
        self._flushed.sum()
        torch.cuda._sleep(self.HEAD_START)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        marks[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def clock_of(device: str) -> Clock:
    return CudaClock() if device == "cuda" else Clock()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return percentiles of at least two values by name, by linear interpolation."""
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"p20": tenths[1], "p50": tenths[4], "p80": tenths[7]}


Name = TypeVar("Name")
Times = dict[Name, list[list[float]]]
"""By name, for every repetition, the seconds of each part. Repetitions of one round have one index."""


def measure(
    actions: Mapping[Name, Sequence[Callable[[], object]]],
    clock: Clock,
    seconds: float,
    clear: Callable[[Name], object] = lambda name: None,
    now: Callable[[], float] = time.perf_counter,
) -> Times[Name]:
    """Time actions in rounds, each action once a round and in an order that is drawn anew for each.

    Args:
        actions: by name, the parts of an action, which are called in order and timed separately.
        clock: clock of the device that they run on.
        seconds: total time of the rounds per action, as far as LEAST and MOST rounds permit.
        clear: called with the name after each action, not timed.
        now: returns the time, to which the limit `seconds` refers.
    """

    def timed(name: Name) -> list[float]:
        clock.ready()
        marks = [clock.mark()]
        for part in actions[name]:
            part()
            marks.append(clock.mark())
        passed = clock.seconds(marks)
        clear(name)
        return passed

    order, draw = list(actions), random.Random(0)
    for name in order * WARM_UP:
        timed(name)
    times: Times[Name] = {name: [] for name in actions}
    end = now() + seconds * len(actions)
    for done in range(MOST):
        if done >= LEAST and now() >= end:
            break
        draw.shuffle(order)
        for name in order:
            times[name].append(timed(name))
    return times


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the median over rounds of value / base; both of a round are timed one after the other."""
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def paired_difference(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the median over rounds of value - base."""
    return statistics.median(value - other for value, other in zip(values, base, strict=True))
