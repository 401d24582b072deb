"""The machine of a measurement, and its measured peak rates."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils import collect_env

from ftengine import __version__
from ftengine.ops import active_backend
from ftengine_bench.layers import dtype_name
from ftengine_bench.timing import Clock, measure, spread

COPIED_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
"""Far larger than any cache."""

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
"""M = K = N, large enough for a product to be at its best rate."""


def machine(device: str) -> dict[str, Any]:
    """Return the device, its capability, and the versions of the software."""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        name, capability = properties.name, f"sm_{properties.major}{properties.minor}"
        driver = collect_env.get_nvidia_driver_version(collect_env.run)
    else:
        name, capability, driver = _processor_name(), torch.backends.cpu.get_cpu_capability(), None
    return {
        "device": device,
        "name": name,
        "capability": capability,
        "driver": driver,
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


def _processor_name() -> str:
    described = Path("/proc/cpuinfo")  # of Linux
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Peak:
    """Measured peak rates of a device in one dtype.

    Args:
        dtype: the dtype's name.
        copy_bytes_a_second: bytes read and written per second by a large copy.
        operations_a_second: speed of a large square product, counting two operations for each multiply and add.
    """

    dtype: str
    copy_bytes_a_second: float
    operations_a_second: float


def measure_peak(dtype: torch.dtype, device: str, clock: Clock, seconds: float) -> Peak:
    """Time a large copy and a large matrix product; return medians, as for the measurements."""
    count, size = COPIED_BYTES[device] // dtype.itemsize, PRODUCT_SIZE[device]
    source = torch.ones(count, dtype=dtype, device=device)
    target = torch.empty_like(source)
    left, right, product = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(3))
    actions = {"copy": [lambda: target.copy_(source)], "product": [lambda: torch.mm(left, right.t(), out=product)]}
    times = measure(actions, clock, seconds)
    copy, matmul = (spread([parts[0] for parts in times[name]])["p50"] for name in actions)
    return Peak(dtype_name(dtype), 2 * source.nbytes / copy, 2 * size**3 / matmul)
