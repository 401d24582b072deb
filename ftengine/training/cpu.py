"""Settings of the C library for training on a CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, from malloc.h."""


def prepare_cpu() -> None:
    """Keep memory that a step frees for the next step.

    glibc returns large freed blocks to the system, and each step would have to map their pages again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is not None:
        if not mallopt(M_MMAP_THRESHOLD, 1 << 30):
            mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the maximum in older versions
        mallopt(M_TRIM_THRESHOLD, -1)
