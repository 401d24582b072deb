"""Bounds on what a template may compute, since whoever wrote it may not be known."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 10
"""Seconds of computing for a template and one conversation; a usual one takes a thousandth."""
ROOM = 1 << 29
"""Bytes of memory for the same: ten copies of a conversation of 50 MB."""


@contextmanager
def limited() -> Iterator[None]:
    """End a block that computes for more than `PATIENCE` (TimeoutError) or takes more than `ROOM` (MemoryError)."""
    with _limited_time(), _limited_memory():
        yield


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Bound the address space, where the system tells how much of it is taken; in the main thread, as it is for all."""
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
    """Bound the computing, where signals can: in the main thread."""
    vtalrm = getattr(signal, "SIGVTALRM", None)  # counts processor time, and has hardly another use
    main = threading.current_thread() is threading.main_thread()
    if vtalrm is None or not main or signal.getsignal(vtalrm) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise TimeoutError

    signal.signal(vtalrm, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(vtalrm, signal.SIG_DFL)
