"""Bounds on what a template may compute, since whoever wrote it may not be known."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from jinja2 import Environment

from ftengine.errors import DataError

PATIENCE = 10
"""Seconds of computing, in user code and in the system, for a template and one conversation; a usual one takes a
thousandth."""
ROOM = 1 << 29
"""Bytes of memory for the same: ten copies of a conversation of 50 MB."""
INTERVAL = 0.05
"""Seconds of computing after which time and memory are looked at."""


@contextmanager
def limited() -> Iterator[None]:
    """End a block that computes for more than `PATIENCE` (TimeoutError) or takes more than `ROOM` (MemoryError)."""
    with _limited_time(), _limited_memory():
        yield


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Bound the address space, where the system tells how much of it is taken; in the main thread, as it is for all.

    What a process has reserved and not used lets a template take more than `ROOM`: `_limited_time` looks at that.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb", buffering=0) as file:
        room = int(file.read(99).split()[0]) * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room if soft == resource.RLIM_INFINITY else min(room, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _limited_time() -> Iterator[None]:
    """Bound computing and memory, where signals can: in the main thread, between operations."""
    vtalrm = getattr(signal, "SIGVTALRM", None)  # counts processor time, and has hardly another use
    main = threading.current_thread() is threading.main_thread()
    if vtalrm is None or not main or signal.getsignal(vtalrm) is not signal.SIG_DFL:
        yield
        return

    began, held = time.thread_time(), _resident_bytes()

    def look(number: int, frame: Any) -> None:
        if time.thread_time() - began > PATIENCE:
            raise TimeoutError
        if _resident_bytes() - held > ROOM:
            raise MemoryError

    signal.signal(vtalrm, look)
    signal.setitimer(signal.ITIMER_VIRTUAL, INTERVAL, INTERVAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(vtalrm, signal.SIG_DFL)


def _resident_bytes() -> int:
    """Return the memory that the process uses; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    import resource

    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read(99).split()[1]) * resource.getpagesize()


def refuse_powers(template: str) -> None:
    """Refuse a template that computes powers (DataError): one can take hours in which no signal is handled."""
    if _has_power(template):
        raise DataError(
            "the model's chat template raises numbers to powers (**), which can compute without end. Take the "
            "template from the model's author."
        )


@cache
def _has_power(template: str) -> bool:
    return "**" in template and ("operator", "**") in {(kind, text) for _, kind, text in Environment().lex(template)}
