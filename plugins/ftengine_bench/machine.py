"""What a measurement ran on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils import collect_env

from ftengine import __version__
from ftengine.ops import active_backend


def machine(device: str) -> dict[str, Any]:
    """Return the device, what it can do, and the software above it."""
    return {
        **(_gpu() if device == "cuda" else _processor()),
        "kernels": dict(zip(("backend", "reason"), active_backend(device), strict=True)),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "ftengine": __version__,
        "peft": _version("peft"),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": "cuda",
        "name": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "driver": collect_env.get_nvidia_driver_version(collect_env.run),
        "memory_bytes": properties.total_memory,
    }


def _processor() -> dict[str, Any]:
    return {
        "device": "cpu",
        "name": _processor_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "driver": None,
        "memory_bytes": _memory_bytes(),
    }


def _processor_name() -> str:
    described = Path("/proc/cpuinfo")  # of Linux
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    if not hasattr(os, "sysconf"):
        return None  # Windows
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
