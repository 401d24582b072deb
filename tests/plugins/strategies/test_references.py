"""A prepared and changed model answers as its base for a while, and as itself again afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from test_strategies_conform import CASES, REGISTRY, base, t5_folder  # noqa: F401 (fixtures)

from ftengine.api import References
from ftengine.model import raw_outputs, trainable

WITH = [(model, spec) for model, spec in CASES if spec["name"] != "full" and model != "bert"]


@pytest.mark.parametrize(("base", "spec"), WITH, indirect=["base"], ids=str)
def test_a_model_answers_as_its_base_and_then_as_itself(base, spec):  # noqa: F811
    ids = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if base.module.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :4]
    plain, loaded = base.module.eval(), copy.deepcopy(base)
    strategy = REGISTRY.build("strategy", spec, "strategy")
    strategy.prepare(loaded)
    model = loaded.module.eval()
    classes = [type(module) for module in model.modules()]
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
        own = raw_outputs(model, batch)
        assert isinstance(strategy, References)
        with strategy.as_base(loaded):
            assert torch.equal(raw_outputs(model, batch), raw_outputs(plain, batch))
        assert torch.equal(raw_outputs(model, batch), own)
    assert not torch.allclose(own, raw_outputs(plain, batch), atol=1e-3)
    assert [type(module) for module in model.modules()] == classes


def test_an_error_inside_leaves_the_model_as_it_was(llama_folder):
    from ftengine.api import LoadRequest

    loaded = REGISTRY.build("loader", "transformers", "model.loader").load(
        LoadRequest(str(llama_folder), "causal-lm", None)
    )
    strategy = REGISTRY.build("strategy", "lora", "strategy")
    strategy.prepare(loaded)
    classes = [type(module) for module in loaded.module.modules()]
    with pytest.raises(ZeroDivisionError), strategy.as_base(loaded):
        1 / 0  # noqa: B018
    assert [type(module) for module in loaded.module.modules()] == classes


def test_full_tuning_has_no_base_left():
    assert not isinstance(REGISTRY.build("strategy", "full", "strategy"), References)
