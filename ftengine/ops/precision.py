"""The dtype in which a layer computes, with and without autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_enabled(device_type: str) -> bool:
    """Return whether autocast is on for a device; False for devices without autocast ("meta")."""
    known = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)


def compute_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype a layer computes in: autocast's where autocast is on, as torch does, else its own."""
    if autocast_enabled(device_type) and dtype != torch.float64:  # autocast leaves fp64 alone
        return torch.get_autocast_dtype(device_type)
    return dtype


def without_autocast(device_type: str) -> AbstractContextManager:
    """Within the block, disable autocast, so that operands keep the dtype of `compute_dtype`."""
    return torch.autocast(device_type, enabled=False) if autocast_enabled(device_type) else nullcontext()
