"""Frozen weights are looked at by one process where all have the same."""

from types import SimpleNamespace

import pytest
import torch
from expected import raises
from torch import nn

from ftengine.errors import TrainingError
from ftengine.training.frozen_weights import FrozenWeights


@pytest.mark.parametrize("first", [True, False])
def test_the_first_process_alone_reads_weights_that_all_have(first):
    module = nn.Linear(2, 2).requires_grad_(False)
    setup = SimpleNamespace(
        loaded=SimpleNamespace(module=module, pretrained=frozenset()),
        accelerator=SimpleNamespace(is_main_process=first),
        regularizers=[],
        callbacks={},
        strategy=SimpleNamespace(name="own"),
    )
    frozen = FrozenWeights(setup, brought=False)
    with torch.no_grad():
        module.weight.add_(1)
    if first:
        with raises(TrainingError, "weight"):
            frozen.require_unchanged()
    else:
        frozen.require_unchanged()
