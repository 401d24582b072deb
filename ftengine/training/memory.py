"""What a process holds, may hold, and holds at most while something runs."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import psutil
import torch

from ftengine.run.environment import peak_memory_bytes, restart_peak

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may hold."""


def held_bytes(device: torch.device) -> int:
    """Return what this process holds: on a GPU what torch allocated there, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def available_bytes(device: torch.device) -> int:
    """Return what this process may come to hold, with what it holds already; processes of a host share what is free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    free = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
            files = int(stat["inactive_file"])  # copies of files that were read, which are given up for anything else
            free = min(free, int(limit) - int(used) + files)
    except (OSError, ValueError, KeyError):
        pass  # no container of Linux, or an older kernel's
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) + held_bytes(device)


def release_memory() -> None:
    """Give freed memory of the host back, which glibc keeps in its heap: what loading and measuring left behind."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class PeakMemory:
    """What a process holds at most while a block of code runs: `held` before it, `peak` in it, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.held, self.peak = device, 0, 0

    def __enter__(self) -> PeakMemory:
        restart_peak()
        self.held = held_bytes(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = peak_memory_bytes(restarted=True)
