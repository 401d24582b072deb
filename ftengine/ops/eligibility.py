"""Which layers may use a compiled kernel, and the reasons why others may not."""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from ftengine.ops import library
from ftengine.ops.precision import compute_dtype
from ftengine.ops.schemas import PART_SCHEMAS

DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16, torch.float16)}
MAX_RANK = 256
CAPABILITY = (8, 0)
"""Of the oldest GPUs that the CUDA kernels run on: cp.async and mma with bfloat16."""
CUDA_COLUMNS = 8
"""CUDA kernels move 16 bytes at a time, and rows are neighbours: inputs and outputs are multiples of this."""

KERNELS = tuple(name for name in PART_SCHEMAS if name != "lowrank_merge_")
"""What a compiled library has at least: whole layers fall back to these, and a merge that is not compiled to ATen."""

_reference_only = False


@contextmanager
def use_reference() -> Iterator[None]:
    """Let every layer use the reference, even with compiled kernels; for tests and benchmarks.

    The setting applies to the whole process. A backward pass uses the implementation of its forward pass.
    """
    global _reference_only
    before, _reference_only = _reference_only, True
    try:
        yield
    finally:
        _reference_only = before


def why_ineligible(
    device_type: str, dtype: torch.dtype, rank: int, layout: torch.layout = torch.strided, columns: Iterable[int] = ()
) -> str | None:
    """Return why a layer may not use a compiled kernel; None if it may.

    Args:
        device_type: "cpu", "cuda", …
        dtype: dtype in which the layer computes.
        rank: r; for layers that share one input, the sum of their ranks.
        layout: memory layout of the layer's input and frozen weight.
        columns: the layer's numbers of inputs K and outputs N, if known.
    """
    if _reference_only:
        return "the reference is asked for"
    if device_type not in DTYPES:
        return f"device {device_type}: kernels exist for {', '.join(DTYPES)}"
    if dtype not in DTYPES[device_type]:
        return f"dtype {dtype} on {device_type}: kernels exist for {', '.join(map(str, DTYPES[device_type]))}"
    if layout != torch.strided:
        return f"layout {layout}: kernels need {torch.strided}"
    if not 1 <= rank <= MAX_RANK:
        return f"rank {rank}: kernels need 1 to {MAX_RANK}"
    if device_type != "cuda":
        return None
    odd = [size for size in columns if size % CUDA_COLUMNS]
    if odd:
        return f"size {odd[0]} on cuda: kernels need inputs and outputs in multiples of {CUDA_COLUMNS}"
    return why_no_gpu_serves()


def why_no_gpu_serves() -> str | None:
    """Return which GPU or driver is too old for the CUDA kernels; None if none is. The result is cached."""
    return _why_no_gpu_serves()


# torch.compile, which does not see caches and cannot trace what is asked of a driver, takes the answer as it is: what
# torch.compiler.assume_constant_result sets, without importing the compiler for seconds.
why_no_gpu_serves._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _why_no_gpu_serves() -> str | None:
    if not torch.cuda.is_available():
        return None  # nothing is on such a device
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if capability < CAPABILITY:
            has, needed = (".".join(map(str, version)) for version in (capability, CAPABILITY))
            name = torch.cuda.get_device_name(index)
            return f"GPU {index}, {name}, has compute capability {has}: kernels need {needed}"
    built, driver = library.cuda_version(), driver_version()
    if built is not None and driver is not None and driver < built:
        return (
            f"the NVIDIA driver is for CUDA {driver} and the kernels were compiled by nvcc {built}: update the driver, "
            f"or reinstall ftengine with a CUDA {driver} toolkit"
        )
    return None


def driver_version() -> int | None:
    """Return the major CUDA version that the NVIDIA driver supports; None if unknown."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000  # 12040 is CUDA 12.4


def why_reference(
    device_type: str, dtype: torch.dtype, rank: int, layout: torch.layout = torch.strided, columns: Iterable[int] = ()
) -> str | None:
    """Return `why_ineligible` for an input's dtype; with autocast, for autocast's dtype."""
    return why_ineligible(device_type, compute_dtype(device_type, dtype), rank, layout, columns)


def active_backend(device_type: str = "cpu") -> tuple[str, str]:
    """Return which implementation computes eligible layers on a device, and why: ("compiled" or "reference", reason).

    The answer comes from torch's dispatcher, so it is the implementation that actually runs.
    """
    key = device_type.upper()
    if all(torch._C._dispatch_has_kernel_for_dispatch_key(f"ftengine::{name}", key) for name in KERNELS):
        refused = why_no_gpu_serves() if device_type == "cuda" else None
        return ("reference", refused) if refused else ("compiled", library.describe(device_type))
    return "reference", library.why_absent(device_type)
