"""Limits on the time and memory of chat templates, which may come from strangers."""

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
    """Abort a block that computes for more than `PATIENCE` (TimeoutError) or uses more than `ROOM` (MemoryError)."""
    with _limited_time(), _limited_memory():
        yield


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Limit the address space, in the main thread, if the system reports its size.

    Reserved but unused memory lets a template use more than `ROOM`; `_limited_time` checks for that.
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
    """Limit time and memory by signals, which work in the main thread and between operations."""
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
    """Return the memory that the process uses; 0 if the system does not report it."""
    if sys.platform != "linux":
        return 0
    import resource

    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read(99).split()[1]) * resource.getpagesize()


def refuse_powers(template: str) -> None:
    """Raise DataError if a template computes powers, since one power can take hours without handling a signal."""
    if _has_power(template):
        raise DataError(
            "the model's chat template raises numbers to powers (**), which can compute without end. Take the "
            "template from the model's author."
        )


@cache
def _has_power(template: str) -> bool:
    return "**" in template and ("operator", "**") in {(kind, text) for _, kind, text in Environment().lex(template)}
