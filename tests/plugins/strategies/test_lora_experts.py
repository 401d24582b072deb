"""What `targets` mean in a mixture of experts, and what its options do there."""

from __future__ import annotations

import copy

import pytest
import torch
from expected import raises
from expert_models import MIXTURES, SIZES, TOKENS, gradients, ids, mixture, outputs, shaken
from torch import nn
from transformers import Llama4ForCausalLM, Llama4TextConfig

from ftengine.api import LoadedModel
from ftengine.equivalence import distance
from ftengine.errors import NoMatch, RecipeError
from ftengine.model import decayed, trainable
from ftengine_builtins.strategies import lora_checks
from ftengine_builtins.strategies.expert_layers import expert_layers, expert_modules, names, routers
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig


def prepared(model: LoadedModel, **options) -> LoRA:
    torch.manual_seed(0)
    strategy = LoRA(LoRAConfig(**{"dropout": 0.0, **options}))
    strategy.prepare(model)
    return strategy


def taken(model: LoadedModel, targets) -> set[str]:
    return {path.split(".", 3)[3] for paths in prepared(model, targets=targets).matches().values() for path in paths}


EXPERTS = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", ATTENTION | EXPERTS),
        ("attention", ATTENTION),
        ("experts", EXPERTS),
        (["experts"], EXPERTS),
        (["mlp.experts.down_proj", "q_proj"], {"mlp.experts.down_proj", "self_attn.q_proj"}),
        (["gate_up_proj"], {"mlp.experts.gate_up_proj"}),
        (r".*\.mlp\..*", EXPERTS | {"mlp.gate"}),
        (r".*\.1\..*down_proj", {"mlp.experts.down_proj"}),
        (["gate"], {"mlp.gate"}),
    ],
    ids=lambda value: ",".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_targets_name_parameters_of_experts(targets, expected) -> None:
    assert taken(mixture("Olmoe"), targets) == expected


def test_linear_layers_beside_experts_are_taken_and_routers_are_not() -> None:
    model = mixture("DeepseekV3")
    paths = prepared(model).matches()["all-linear"]
    assert "model.layers.1.mlp.shared_experts.up_proj" in paths
    assert "model.layers.0.mlp.down_proj" in paths
    assert not routers(model.module) & {*paths}
    assert all("lora_" in name for name in trainable(model.module))


@pytest.mark.parametrize("targets", ["experts", "attention"])
def test_a_model_without_such_layers_says_so(targets) -> None:
    with raises(NoMatch, targets):
        prepared(LoadedModel(nn.Sequential(nn.Linear(4, 4)), None, "memory", "causal-lm"), targets=targets)


def test_a_plan_counts_experts_and_warns_where_they_are_left_out() -> None:
    facts, warnings = (prepared(model := mixture("Olmoe"))).notes(model)
    added = sum(p.numel() for name, p in trainable(model.module).items() if ".experts." in name)
    assert not warnings
    assert all(part in facts[0] for part in ("4 experts", "2 layers", "gate_up_proj", f"{added:,}"))
    left_out = prepared(model := mixture("Olmoe"), targets="attention").notes(model)
    assert left_out[0] == []
    assert "4 experts" in left_out[1][0]
    facts, warnings = prepared(model := mixture("Olmoe"), targets=["gate_up_proj"]).notes(model)
    assert "down_proj" in warnings[0]
    assert facts


@pytest.mark.parametrize(("rank", "expected"), [(None, 6), (2, 2), ("split", 3)])
def test_experts_have_a_rank_of_their_own(rank, expected) -> None:
    strategy = prepared(model := mixture("Qwen3Moe"), rank=6, expert_rank=rank, rank_pattern={r"1\..*down_proj": 5})
    ranks = {path: part.lora_factors("down_proj")[0].shape[-2] for path, part in expert_layers(model.module).items()}
    assert [*ranks.values()] == [expected, 5]
    assert model.module.model.layers[0].self_attn.q_proj.lora_a.shape[0] == 6
    opened = prepared(again := mixture("Qwen3Moe"), **strategy.loading_options())
    assert [p.shape for p in trainable(again.module).values()] == [p.shape for p in trainable(model.module).values()]
    assert opened.loading_options() == strategy.loading_options()


def test_a_rank_that_cannot_be_split_is_refused(monkeypatch) -> None:
    with raises(RecipeError, "expert_rank", "rank 1", "2 experts"):
        prepared(mixture("Qwen3Moe"), rank=1, expert_rank="split")
    monkeypatch.setattr(lora_checks, "experts_per_token", lambda _: None)
    with raises(RecipeError, "expert_rank", "Qwen3MoeForCausalLM"):
        prepared(mixture("Qwen3Moe"), expert_rank="split")


@pytest.mark.parametrize("options", [{"dora": True}, {"init": "pissa"}, {"init": "olora", "targets": "experts"}])
def test_what_experts_have_no_form_of_is_refused(options) -> None:
    with raises(RecipeError, "experts", next(iter({*options} - {"targets"}))):
        prepared(mixture("Olmoe"), **options)
    prepared(mixture("Olmoe"), **options | {"targets": "attention"})


def test_one_a_may_serve_all_experts_of_a_layer() -> None:
    prepared(model := mixture("GptOss"), targets="experts", expert_a="shared", lr_ratio=4)
    own = {name: p.ndim for name, p in trainable(model.module).items()}
    assert {(name[-1], ndim) for name, ndim in own.items()} == {("a", 2), ("b", 3)}
    assert {*own} <= decayed(model.module)
    groups = LoRA(LoRAConfig(lr_ratio=4)).param_groups(model.module, 1.0, 0.1)
    assert {(group["lr"], p.ndim) for group in groups for p in group["params"]} == {(1.0, 2), (4.0, 3)}


def test_a_router_trains_where_it_is_named_and_merges() -> None:
    strategy = prepared(model := mixture("Mixtral"), targets=["gate"], rank=2)
    found = gradients(model.module, ids())
    assert {name.rpartition(".")[2] for name in found} == {"lora_a", "lora_b"}
    assert any(gradient.any() for gradient in found.values())
    shaken(model.module)
    tuned = outputs(model.module)
    strategy.merge(model)
    assert distance(outputs(model.module), tuned) < 1e-5
    assert not trainable(model.module)


@pytest.mark.parametrize("kind", MIXTURES)
def test_frozen_experts_are_neither_copied_nor_given_gradients(kind) -> None:
    prepared(model := mixture(kind), targets="experts", dropout=0.1)
    weights = {name: p.data_ptr() for name, p in model.module.named_parameters() if not p.requires_grad}
    largest = max(p[0].numel() for part in expert_modules(model.module).values() for p in part.parameters())
    sizes = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights.values():
            sizes.append(tensor.numel() if tensor.dim() == 3 else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.module.train()(input_ids=ids(1, 3), labels=ids(1, 3)).loss
    loss.backward()
    assert max(sizes) < 4 * largest
    assert all(p.grad is None for p in model.module.parameters() if not p.requires_grad)


def test_a_copy_trains_on_its_own() -> None:
    prepared(model := mixture("Olmoe"), targets="experts")
    other = shaken(copy.deepcopy(model.module))
    assert distance(outputs(other), outputs(model.module)) > 0.01
    assert distance(outputs(model.module), outputs(mixture("Olmoe").module)) < 1e-5


def in_parts(experts: nn.Module) -> None:
    experts._is_expert_parallel = True


def in_eight_bits(experts: nn.Module) -> None:
    """As transformers' FP8Experts, whose scales are parameters beside the weights."""
    for name in names(experts):
        weight = getattr(experts, name).detach().to(torch.float8_e4m3fn)
        setattr(experts, name, nn.Parameter(weight, requires_grad=False))


@pytest.mark.parametrize("hinder", [in_parts, in_eight_bits])
def test_experts_that_cannot_be_adapted_are_named(hinder) -> None:
    model = mixture("Olmoe")
    for part in expert_modules(model.module).values():
        hinder(part)
    with raises(NoMatch, "experts", "model.layers.0.mlp.experts.gate_up_proj"):
        prepared(model, targets="experts")
    strategy = prepared(model)
    assert "model.layers.0.mlp.experts" in strategy.notes(model)[1][0]


def test_experts_of_another_kind_stay_and_their_router_is_no_linear_layer() -> None:
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "head_dim": 8}
    config = Llama4TextConfig(**SIZES | TOKENS | sizes, intermediate_size_mlp=24)
    model = LoadedModel(Llama4ForCausalLM(config).eval(), None, "memory", "causal-lm")
    before = outputs(model.module)
    strategy = prepared(model)
    assert not any("router" in path or ".experts" in path for path in strategy.matches()["all-linear"])
    assert "Llama4TextExperts" in strategy.notes(model)[1][0]
    assert distance(outputs(model.module), before) < 1e-6
    assert not torch.equal(outputs(shaken(model.module)), before)
    model = LoadedModel(Llama4ForCausalLM(config).eval(), None, "memory", "causal-lm")
    with raises(NoMatch, "Llama4TextExperts"):
        prepared(model, targets="experts")
    prepared(model, targets=["router"])
    assert {name.rpartition(".")[0] for name in gradients(model.module, ids())} == {
        f"model.layers.{i}.feed_forward.router" for i in range(2)
    }


class Mxfp4GptOssExperts(nn.Module):
    """As transformers packs gpt-oss: two numbers of 4 bits in a byte."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        for name in names(experts):
            packed = torch.zeros_like(experts._parameters[name], dtype=torch.uint8)
            self.register_parameter(name, nn.Parameter(packed, requires_grad=False))


def test_packed_experts_are_named() -> None:
    strategy = prepared(model := packed_mixture())
    assert "Mxfp4GptOssExperts" in strategy.notes(model)[1][0]
    assert {path.rpartition(".")[2] for path in strategy.matches()["all-linear"]} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    with raises(NoMatch, "Mxfp4GptOssExperts"):
        prepared(packed_mixture(), targets="experts")


def packed_mixture() -> LoadedModel:
    model = mixture("GptOss")
    for layer in model.module.model.layers:
        layer.mlp.experts = Mxfp4GptOssExperts(layer.mlp.experts)
    return model
