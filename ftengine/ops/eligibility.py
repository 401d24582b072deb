"""Which layers may take a compiled kernel, and why the others do not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ftengine.ops import library
from ftengine.ops.precision import compute_dtype
from ftengine.ops.schemas import NAMES

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


def is_eligible(device_type: str, dtype: torch.dtype, rank: int, layout: torch.layout = torch.strided) -> bool:
    """Say whether a layer may take a compiled kernel.

    Args:
        device_type: "cpu", "cuda", …
        dtype: that the layer computes in.
        rank: r.
        layout: of the layer's input and frozen weight.
    """
    return (
        dtype in DTYPES.get(device_type, ())
        and 1 <= rank <= MAX_RANK
        and layout == torch.strided
        and not _reference_only
    )


def why_reference(device_type: str, dtype: torch.dtype, rank: int, layout: torch.layout = torch.strided) -> str | None:
    """Say why a layer takes the reference, or None when it may take a compiled kernel.

    As is_eligible, but dtype is the input's: autocast, where it is on, has the last word.
    """
    dtype = compute_dtype(device_type, dtype)
    if is_eligible(device_type, dtype, rank, layout):
        return None
    if _reference_only:
        return "the reference is asked for"
    if device_type not in DTYPES:
        return f"device {device_type}: kernels exist for {', '.join(DTYPES)}"
    if dtype not in DTYPES[device_type]:
        return f"dtype {dtype} on {device_type}: kernels exist for {', '.join(map(str, DTYPES[device_type]))}"
    if layout != torch.strided:
        return f"layout {layout}: kernels need {torch.strided}"
    return f"rank {rank}: kernels need 1 to {MAX_RANK}"


def active_backend(device_type: str = "cpu") -> tuple[str, str]:
    """Return (name, reason) of what serves eligible layers on a device: ("compiled", …) or ("reference", …).

    The dispatcher answers, so this is what runs, not what was meant to.
    """
    key = device_type.upper()
    if all(torch._C._dispatch_has_kernel_for_dispatch_key(f"ftengine::{name}", key) for name in NAMES):
        return "compiled", library.describe(device_type)
    return "reference", library.why_absent(device_type)
