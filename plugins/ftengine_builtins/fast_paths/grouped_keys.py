"""Grouped-query attention without repeated keys."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ftengine.api import FastPath, FastPathTraits, LoadedModel, TrainingContext
from ftengine.errors import RecipeError

VARIABLE = "TRANSFORMERS_SDPA_FORCE_GQA"
"""Where transformers looks, each time, whether torch's attention is given grouped keys."""


class GroupedKeys(FastPath):
    """Grouped-query attention on a CPU without repeating keys and values for each query head.

    transformers repeats them in padded batches, although torch's attention on a CPU does not need that. The environment
    variable TRANSFORMERS_SDPA_FORCE_GQA, if set, is respected.
    """

    name = "grouped-keys"
    traits = FastPathTraits(supports_sharding=True)

    def check_device(self, device: torch.device) -> None:
        if device.type != "cpu":
            raise RecipeError(f"fast path {self.name!r} is for CPUs, and the model computes on {device}")

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        groups = [getattr(module, "num_key_value_groups", 1) for module in loaded.module.modules()]
        grouped = sum(isinstance(number, int) and number > 1 for number in groups)
        by_torch = getattr(getattr(loaded.module, "config", None), "_attn_implementation", None) == "sdpa"
        if not grouped or not by_torch or VARIABLE in os.environ:
            yield None
            return
        os.environ[VARIABLE] = "1"
        try:
            yield {"attention layers": grouped}
        finally:
            del os.environ[VARIABLE]
