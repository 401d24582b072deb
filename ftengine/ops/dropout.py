"""Rounding of dropout probabilities, and random seeds."""

import torch
from torch import Tensor

LEVELS = 1 << 16


def dropout_level(p: float) -> int:
    """Return n in [0, 65535] such that n / 65536 is nearest to p.

    Raises:
        ValueError: p is not in [0, 1).
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout probability p = {p}: it must lie in [0, 1); use p=0.0 for no dropout")
    return min(round(p * LEVELS), LEVELS - 1)


def quantise_dropout(p: float) -> float:
    """Return the probability that is applied: the multiple of 1/65536 nearest to p, below 1.

    A mask compares 16 random bits an element; 1/(1-p) uses the quantised p, so the mean stays exact.
    """
    return dropout_level(p) / LEVELS


def draw_seed(device: torch.device | str = "cpu") -> Tensor:
    """Draw a () int64 seed in [0, 2^63 - 1) from torch's default generator of the device.

    It stays a tensor: activation checkpointing restores the generator and so replays the mask, and a GPU reads it
    without synchronising.
    """
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)
