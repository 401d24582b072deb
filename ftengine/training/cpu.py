"""What training on a CPU asks of the libraries below it."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, as malloc.h has them."""


def prepare_cpu() -> None:
    """Have memory that a step frees kept for the next one.

    glibc gives large blocks back to the system when they are freed, and each step would pay for their pages again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is not None:
        if not mallopt(M_MMAP_THRESHOLD, 1 << 30):
            mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the most that older ones take
        mallopt(M_TRIM_THRESHOLD, -1)
