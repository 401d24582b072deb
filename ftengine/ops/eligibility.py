"""Which layers may take a compiled kernel, and why the others do not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ftengine.ops import library
from ftengine.ops.precision import compute_dtype
from ftengine.ops.schemas import PART_SCHEMAS

DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
MAX_RANK = 256

_reference_only = False


@contextmanager
def use_reference() -> Iterator[None]:
    """Let every layer take the reference, whatever is compiled; for tests and benchmarks.

    It holds for the whole process. A backward takes what its forward took.
    """
    global _reference_only
    before, _reference_only = _reference_only, True
    try:
        yield
    finally:
        _reference_only = before


def why_ineligible(device_type: str, dtype: torch.dtype, rank: int, layout: torch.layout = torch.strided) -> str | None:
    """Say why a layer may not take a compiled kernel, or None when it may.

    Args:
        device_type: "cpu", "cuda", …
        dtype: that the layer computes in.
        rank: r.
        layout: of the layer's input and frozen weight.
    """
    if _reference_only:
        return "the reference is asked for"
    if device_type not in DTYPES:
        return f"device {device_type}: kernels exist for {', '.join(DTYPES)}"
    if dtype not in DTYPES[device_type]:
        return f"dtype {dtype} on {device_type}: kernels exist for {', '.join(map(str, DTYPES[device_type]))}"
    if layout != torch.strided:
        return f"layout {layout}: kernels need {torch.strided}"
    return None if 1 <= rank <= MAX_RANK else f"rank {rank}: kernels need 1 to {MAX_RANK}"


def why_reference(device_type: str, dtype: torch.dtype, rank: int, layout: torch.layout = torch.strided) -> str | None:
    """As why_ineligible, but dtype is the input's: autocast, where it is on, has the last word."""
    return why_ineligible(device_type, compute_dtype(device_type, dtype), rank, layout)


def active_backend(device_type: str = "cpu") -> tuple[str, str]:
    """Return (name, reason) of what serves eligible layers on a device: ("compiled", …) or ("reference", …).

    The dispatcher answers, so this is what runs, not what was meant to.
    """
    key = device_type.upper()
    if all(torch._C._dispatch_has_kernel_for_dispatch_key(f"ftengine::{name}", key) for name in PART_SCHEMAS):
        return "compiled", library.describe(device_type)
    return "reference", library.why_absent(device_type)
