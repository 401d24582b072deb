"""A model that answers as its base for a while; that it does is one of the checks of every strategy."""

from __future__ import annotations

import pytest

from ftengine.api import overrides
from ftengine.plugins.registry import Registry
from ftengine.testing import fixture

REGISTRY = Registry()
WITH = ("adapter", "lora", "prefix", "prompt")


@pytest.mark.parametrize("name", WITH)
def test_an_error_inside_leaves_the_model_as_it_was(name):
    loaded = fixture("causal-lm").load()
    strategy = REGISTRY.build("strategy", name, "strategy")
    strategy.prepare(loaded)
    classes = [type(module) for module in loaded.module.modules()]
    with pytest.raises(ZeroDivisionError), strategy.disabled(loaded):
        1 / 0  # noqa: B018
    assert [type(module) for module in loaded.module.modules()] == classes


def test_full_tuning_has_no_base_left():
    assert not overrides(REGISTRY.build("strategy", "full", "strategy"), "disabled")
