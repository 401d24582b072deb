"""Losses of routers against transformers' own, whole and in parts, and counts of the tokens of experts."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from expected import raises
from expert_models import MIXTURES, ids, mixture
from torch import Tensor

from ftengine.api import LoadedModel
from ftengine.equivalence import distance
from ftengine.errors import RecipeError
from ftengine.training.regularizing import Attached
from ftengine_builtins.regularizers.load_balancing import LoadBalancing
from ftengine_builtins.strategies.full import Full
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig
from ftengine_builtins.strategies.routing import ASKED, EVERY_TOKEN, ExpertLoads, busiest, entropy, spread
from ftengine_builtins.tasks.causal_lm import CausalLM

WITH_LOSS = [kind for kind in MIXTURES if kind not in ("DeepseekV3", "Glm4Moe")]


def batch() -> dict[str, Tensor]:
    rows = ids(4, 9)
    mask = torch.ones_like(rows)
    mask[1, 6:] = mask[3, 4:] = 0
    return {"input_ids": rows, "attention_mask": mask}


def balanced(model: LoadedModel, inputs: dict[str, Tensor], attached: Attached) -> Tensor:
    model.module.train()(**inputs)
    penalty = attached.penalty({}, torch.zeros(()))
    assert penalty is not None
    return penalty


def router_gradients(model: LoadedModel, loss: Tensor) -> list[Tensor]:
    parameters = [p for name, p in model.module.named_parameters() if name.endswith((".gate.weight", "router.weight"))]
    parameters += [p for name, p in model.module.named_parameters() if "router.layer" in name]
    return list(torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize("kind", WITH_LOSS)
def test_load_balancing_is_transformers_own(kind) -> None:
    model, inputs = mixture(kind), batch()
    weight = model.module.router_aux_loss_coef
    theirs = weight * model.module.train()(**inputs, output_router_logits=True).aux_loss
    expected = router_gradients(model, theirs)
    attached = Attached([LoadBalancing()], model, CausalLM())
    ours = balanced(model, inputs, attached)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert max(distance(a, b) for a, b in zip(router_gradients(model, ours), expected, strict=True)) < 1e-5
    assert attached.penalty({}, torch.zeros(())) is None  # each call's tokens count once
    attached.detach()
    assert model.module not in EVERY_TOKEN


def test_losses_that_nobody_detached_do_not_keep_their_model() -> None:
    model = mixture("Olmoe")
    attached = Attached([LoadBalancing()], model, CausalLM())
    balanced(model, batch(), attached)
    known, module = len(EVERY_TOKEN), weakref.ref(model.module)
    assert model.module in EVERY_TOKEN
    del model, attached
    gc.collect()
    assert module() is None
    assert len(EVERY_TOKEN) == known - 1


@pytest.mark.parametrize("checkpointed", [False, True])
def test_layers_that_recompute_count_once(checkpointed) -> None:
    model, inputs = mixture("Olmoe"), batch()
    if checkpointed:
        model.module.gradient_checkpointing_enable({"use_reentrant": False})
    attached = Attached([LoadBalancing(), loads := ExpertLoads(4)], model, CausalLM())
    for _ in range(2):
        balanced(model, inputs, attached).backward()
    assert loads.state_dict()["counts"].sum((0, 2)).tolist() == [2 * 2 * int(inputs["attention_mask"].sum())] * 2
    attached.detach()


def test_the_z_loss_of_parts_adds_up_to_that_of_the_whole() -> None:
    model, inputs = mixture("Mixtral"), batch()
    attached = Attached([LoadBalancing(LoadBalancing.Config(coefficient=0, z_coefficient=0.1))], model, CausalLM())
    whole, total = balanced(model, inputs, attached), inputs["attention_mask"].sum()
    parts = torch.zeros(())
    for row in range(4):
        part = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        parts = parts + balanced(model, part, attached) * part["attention_mask"].sum() / total
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6)
    pairs = zip(router_gradients(model, parts), router_gradients(model, whole), strict=True)
    assert max(distance(a, b) for a, b in pairs) < 1e-5


def test_the_configurations_loss_is_added_unless_the_recipe_has_its_own() -> None:
    for options, name, expected in ((True, "own", 1.0), (False, "own", None), (True, "both", 3.0)):
        model, inputs = mixture("Qwen3Moe"), batch()
        weight = model.module.router_aux_loss_coef
        aux = model.module.train()(**inputs, output_router_logits=True).aux_loss.item()
        setattr(model.module, ASKED, options)
        (strategy := Full()).prepare(model)
        regularizers = [strategy.regularizer(3)]
        if name == "both":
            regularizers.append(LoadBalancing(LoadBalancing.Config(coefficient=3 * weight)))
        attached = Attached(regularizers, model, CausalLM())
        model.module.train()(**inputs)
        penalty = attached.penalty({}, torch.zeros(()))
        assert (penalty is None) == (expected is None)
        assert penalty is None or penalty.item() == pytest.approx(expected * weight * aux, rel=1e-6)
        attached.detach()


@pytest.mark.parametrize("kind", ["DeepseekV3", "Glm4Moe"])
def test_models_that_balance_in_another_way_are_refused(kind) -> None:
    with raises(RecipeError, kind, "router_aux_loss_coef"):
        Attached([LoadBalancing()], mixture(kind), CausalLM())


@pytest.mark.parametrize("kind", MIXTURES)
def test_tokens_of_experts_are_counted_and_padding_is_not(kind) -> None:
    model, inputs = mixture(kind), batch()
    (strategy := LoRA(LoRAConfig())).prepare(model)
    loads = strategy.regularizer(20)
    attached = Attached([loads], model, CausalLM())
    for step in range(1, 7):
        model.module.train()(**inputs)
        with torch.no_grad():
            model.module(**inputs)
        attached.on_step_end(step)
    facts = loads.on_train_end(model.module, dict)
    tokens = int(inputs["attention_mask"].sum())
    assert loads.state_dict()["counts"].sum(2)[0].tolist() == [6 * 2 * tokens] * len(facts["expert_layers"])
    assert loads.state_dict()["counts"].sum(2)[1].tolist() == [2 * 2 * tokens] * len(facts["expert_layers"])
    layer = facts["expert_layers"][0]
    assert layer["entropy_before"] == layer["entropy_after"]
    assert 0.25 <= layer["busiest_after"] < 1
    again = strategy.regularizer(20)
    again.attach(model, CausalLM())
    again.load_state_dict(loads.state_dict())
    assert again.on_train_end(model.module, dict) == loads.on_train_end(model.module, dict)
    attached.detach()


def test_how_tokens_spread() -> None:
    assert entropy(torch.tensor([5, 5, 5, 5])) == 1
    assert entropy(torch.tensor([9, 0, 0, 0])) == 0
    assert entropy(torch.tensor([0, 0])) is busiest(torch.tensor([0, 0])) is None
    facts = spread("mlp", torch.tensor([150, 99, 0]), torch.tensor([1, 1, 1]), torch.tensor([3, 1, 0]))
    assert (facts["few"], facts["busiest_after"], facts["entropy_before"]) == (2, 0.75, 1.0)


def test_a_dense_model_brings_nothing(llama_folder) -> None:
    from ftengine.model import open_model

    module, _ = open_model(llama_folder, torch.float32)
    (strategy := LoRA(LoRAConfig())).prepare(LoadedModel(module, None, "memory", "causal-lm"))
    assert strategy.regularizer(3) is None
