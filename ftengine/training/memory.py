"""Memory of a process: what it uses, what it may use, and its peak while code runs."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import psutil
import torch

from ftengine.run.environment import peak_memory_bytes, restart_peak

CGROUP = Path("/sys/fs/cgroup")
"""The folder in which Linux gives the memory limits of a container."""


def held_bytes(device: torch.device) -> int:
    """Return the bytes that this process uses: on a GPU those that torch allocated, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def available_bytes(device: torch.device) -> int:
    """Return the bytes that this process may use in all; processes of a host share the free memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    free = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
            files = int(stat["inactive_file"])  # cached files, which the system drops when memory is needed
            free = min(free, int(limit) - int(used) + files)
    except (OSError, ValueError, KeyError):
        pass  # no Linux container, or an older kernel
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) + held_bytes(device)


def release_memory() -> None:
    """Return freed host memory, such as after loading a model, from glibc's heap to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class PeakMemory:
    """Measures a process's memory in bytes: `held` before a block of code, and `peak` while it runs."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.held, self.peak = device, 0, 0

    def __enter__(self) -> PeakMemory:
        restart_peak()
        self.held = held_bytes(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = peak_memory_bytes(restarted=True)
