"""The dtype that a layer computes in, with autocast and without."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_enabled(device_type: str) -> bool:
    """Say whether autocast is on; some devices ("meta") know none and would raise."""
    known = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)


def compute_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype a layer computes in: autocast's where autocast is on, as torch does, else its own."""
    if autocast_enabled(device_type) and dtype != torch.float64:  # autocast leaves fp64 alone
        return torch.get_autocast_dtype(device_type)
    return dtype


def without_autocast(device_type: str) -> AbstractContextManager:
    """Keep autocast from recasting what compute_dtype has decided, whoever calls backward."""
    return torch.autocast(device_type, enabled=False) if autocast_enabled(device_type) else nullcontext()
