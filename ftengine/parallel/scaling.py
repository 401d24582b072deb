"""Estimates of a step's time on many processes, from one measured step and the bandwidth of the network."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftengine.errors import InputError
from ftengine.parallel.reduction import BUCKET_BYTES
from ftengine.text import number, percent

WAITING = 0.1
"""If waiting for gradients takes a larger share of a step, `advice` proposes changes."""

_BANDWIDTH = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(bit|b|B)(?:/s|ps)", re.ASCII)
_PREFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Scale:
    """A step on some number of processes, each with the recipe's batch_size and accumulate.

    Args:
        processes: number of processes.
        examples_a_step: size of the effective batch.
        steps: optimiser steps of the run.
        compute_seconds: forward and backward passes of one process.
        communication_seconds: all-reduce of the gradients in a ring.
        exposed_seconds: the part of it that the backward pass does not hide.
    """

    processes: int
    examples_a_step: int
    steps: int
    compute_seconds: float
    communication_seconds: float
    exposed_seconds: float

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.exposed_seconds

    @property
    def efficiency(self) -> float:
        """The share of a step that is computation."""
        return self.compute_seconds / self.step_seconds

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        own = {name: getattr(self, name) for name in ("step_seconds", "efficiency")}
        return {**self.__dict__, **own, "seconds": self.steps * self.step_seconds}


def communication(
    processes: int, gradient_bytes: float, bandwidth: float, backward_seconds: float
) -> tuple[float, float]:
    """Return the seconds of a ring all-reduce of the gradients, and those that the backward pass does not hide.

    Each of n processes sends 2 (n - 1) / n of the gradients' bytes to its neighbour (Patarasuk & Yuan 2009,
    doi:10.1016/j.jpdc.2008.09.002). Of k buckets, all but the last may be sent during the last micro-batch's
    backward pass. Latency, a few microseconds a hop, is ignored.

    Args:
        bandwidth: of the slowest link of the ring in one direction, in bytes a second.
        backward_seconds: time of one micro-batch's backward pass.
    """
    seconds = 2 * (processes - 1) / processes * gradient_bytes / bandwidth
    buckets = max(1, math.ceil(gradient_bytes / BUCKET_BYTES))
    return seconds, seconds - min(seconds * (1 - 1 / buckets), backward_seconds)


def sizes_up_to(processes: int) -> list[int]:
    """Return the powers of 2 below a number, and the number."""
    return [*(2**power for power in range(processes.bit_length()) if 2**power < processes), processes]


def bandwidth_of(text: str) -> float:
    """Return bytes a second for "400Gb/s" (bits), "50GB/s" (bytes) or "25Gbps" (InputError: it is neither)."""
    match = _BANDWIDTH.fullmatch(text.strip())
    if match is None or not (value := float(match[1])):
        raise InputError(
            f"--bandwidth {text!r}: write a number above 0 and its unit, in bits as 400Gb/s or in bytes as 50GB/s."
        )
    return value * _PREFIX[match[2]] / (1 if match[3] == "B" else 8)


def advice(scales: Sequence[Scale], accumulate: int, examples: int, bandwidth: float) -> list[str]:
    """Return sentences on what limits the last of several scales, and what to change."""
    last, lines = scales[-1], []
    if last.examples_a_step > examples:
        most = max(1, examples * last.processes // last.examples_a_step)
        lines.append(
            f"limited by data: a step of {last.processes:,} processes would hold {last.examples_a_step:,} examples, "
            f"but there are {examples:,}; use at most {most:,} processes, or a smaller train.batch_size"
        )
    if last.efficiency >= 1 - WAITING:
        computing = (
            f"limited by computation, which is {percent(last.efficiency)} of a step of {last.processes:,} processes"
        )
        return lines or [computing]
    times = math.ceil(last.exposed_seconds * (1 / WAITING - 1) / last.compute_seconds)
    # At this speed a step waits for at most a tenth of its time, even if the backward pass hides nothing.
    enough = last.communication_seconds * bandwidth * 8 / last.compute_seconds * (1 / WAITING - 1) / 1e9
    lines.append(
        f"limited by the network: {percent(1 - last.efficiency)} of a step of {last.processes:,} processes waits for "
        f"gradients. train.accumulate={accumulate * times} (a step then holds {last.examples_a_step * times:,} "
        f"examples) or {number(enough)} Gb/s would reduce that to a tenth; so may a larger train.batch_size, or a "
        "strategy that trains fewer parameters"
    )
    return lines
