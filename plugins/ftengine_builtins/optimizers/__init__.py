"""Optimisers."""

from ftengine_builtins.optimizers.muon import Muon
from ftengine_builtins.optimizers.torch import SGD, Adafactor, AdamW

__all__ = [
    "SGD",
    "Adafactor",
    "AdamW",
    "Muon",
]
