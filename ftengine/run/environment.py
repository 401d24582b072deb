"""The environment of a run: versions, plugins, hardware. `doctor` prints it, and every run records it."""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine import PACKAGES

if TYPE_CHECKING:
    from ftengine.plugins.discovery import Plugins


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages in PACKAGES; None if one is not installed."""
    return {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}


@cache  # called several times a run, and each call parses a package's metadata
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def required_versions(distribution: str) -> dict[str, str | None]:
    """Return the installed versions of a distribution's requirements, with extras; None if one is not installed."""
    from packaging.requirements import Requirement

    try:
        required = metadata.requires(distribution) or ()
    except metadata.PackageNotFoundError:
        return {}
    return {name: _version(name) for name in sorted({Requirement(requirement).name for requirement in required})}


def hardware() -> dict[str, Any]:
    """Return processor, cores, memory and GPUs, as torch sees them."""
    import psutil
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [
        {"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"}
        for gpu in map(torch.cuda.get_device_properties, range(count))
    ]
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
    }


def build() -> dict[str, Any]:
    """Return how the compiled kernels were built, or why they were not; does not import torch.

    `line` is a summary. `features` are the CPU features that the kernels need, and whether this CPU has them.
    """
    record = Path(__file__).parents[1] / "build.json"  # the build writes it
    if not record.is_file():
        return {"line": "unknown, as this copy of ftengine was not installed"}
    build = json.loads(record.read_text(encoding="utf-8"))
    with suppress(ModuleNotFoundError):  # not compiled, for example without Python's headers
        build["features"] = import_module("ftengine._native").cpu_features()
    return build


def plugin_origins(plugins: Plugins) -> list[dict[str, str]]:
    """Return distribution, version, origin and status of every plugin."""
    keys = ("name", "distribution", "version", "target", "status", "cause")
    return [
        {key: value for key in keys if (value := getattr(origin, key)) or key != "cause"}
        for origin in plugins.origins.values()
    ]


_earlier_peak = 0
"""The peak before the last `restart_peak`, in bytes."""


def restart_peak() -> None:
    """Reset the peak of memory, if the system can; `peak_memory_bytes` still counts the earlier one."""
    import torch

    global _earlier_peak
    _earlier_peak = peak_memory_bytes()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # not Linux, or not allowed: the peak stays that of the whole process
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(*, restarted: bool = False) -> int:
    """Return the peak memory of this process in bytes: on the GPU if it uses one, else resident memory.

    With `restarted`, only the peak since `restart_peak`.
    """
    return max(_peak_bytes(), 0 if restarted else _earlier_peak)


def _peak_bytes() -> int:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError, ValueError):  # not Linux
        # Only of this program: getrusage includes the process that started it.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(peak) * 1024
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _processor() -> str:
    with suppress(OSError, StopIteration):  # not Linux, or no line with a name
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
