"""Updates of experts compute what PEFT's `target_parameters` compute, and are read by PEFT and from PEFT."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from expected import raises
from expert_models import MIXTURES, ROUTINGS, gradients, ids, mixture, outputs, routed, shaken
from peer_programs import assert_same
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from ftengine.api import LoadedModel
from ftengine.equivalence import distance
from ftengine.errors import BaseMismatch, NotExportable
from ftengine_builtins.exporters.peft import read_lora_config
from ftengine_builtins.strategies import peft_format
from ftengine_builtins.strategies.expert_layers import expert_layers
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig

FILE = "adapter_model.safetensors"
OPTIONS = [
    {},
    {"targets": "experts", "expert_rank": 3},
    {"targets": ["down_proj"], "rslora": True},
    {"targets": ["experts.gate_up_proj", "o_proj"], "expert_a": "shared", "alpha_pattern": {"gate_up_proj": 5}},
    {"targets": ["experts", "gate"], "expert_rank": "split", "dropout": 0.3},
]
SOME = [
    pytest.param(kind, options, marks=() if i % len(MIXTURES) == j % len(MIXTURES) else pytest.mark.slow)
    for j, options in enumerate(OPTIONS)
    for i, kind in enumerate(MIXTURES)
]


def prepared(kind: str, **options) -> tuple[LoRA, LoadedModel]:
    model = mixture(kind)
    if kind in ("GptOss", "GraniteMoe") and "gate" in options.get("targets", ()):
        options["targets"] = ["experts", "router"]
    torch.manual_seed(0)
    strategy = LoRA(LoRAConfig(**{"rank": 4, "dropout": 0.0, **options}))
    strategy.prepare(model)
    shaken(model.module)
    return strategy, model


def in_peft(kind: str, folder: Path, dtype: torch.dtype = torch.float32, *, trains: bool = False) -> PeftModel:
    """Open an adapter with PEFT; it must find every key that it looks for, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        model = PeftModel.from_pretrained(mixture(kind, dtype).module, folder, is_trainable=trains)
    stored, opened = load_file(folder / FILE), get_peft_model_state_dict(model)
    assert opened.keys() == stored.keys()
    assert all(torch.equal(opened[key].float(), stored[key]) for key in stored)
    return model


@pytest.mark.parametrize("routing", [*ROUTINGS, "one token"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_gradients_in_float64_equal_pefts(kind, routing, tmp_path) -> None:
    strategy, model = prepared(kind, targets="experts")
    strategy.save(model, tmp_path)
    model.module.double()
    peft = in_peft(kind, tmp_path, torch.float64, trains=True)
    peft.get_base_model().set_experts_implementation("eager")  # PEFT's way is transformers' loop over experts
    batch = ids(1, 2)[:, :1].expand(1, 2) if routing == "one token" else ids()
    ours, theirs = (by_key(kind, part, batch, ROUTINGS.get(routing)) for part in (model, peft))
    assert ours.keys() == theirs.keys()
    apart = {key: distance(ours[key], theirs[key]) for key in theirs}
    assert max(apart.values()) < 1e-11, apart
    assert routing != "all on one" or any(not gradient[:4].any() for gradient in ours.values())


def by_key(kind: str, model: LoadedModel | PeftModel, batch: Tensor, routing) -> dict[str, Tensor]:
    """Return gradients as tensors of a file."""
    module = model.module if isinstance(model, LoadedModel) else model
    base = module if isinstance(model, LoadedModel) else model.get_base_model()
    with routed(base, routing or ROUTINGS["its own"]):
        found = gradients(module, batch)
    holder = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in (holder.module if isinstance(holder, LoadedModel) else holder).named_parameters():
            if parameter.requires_grad:
                parameter.copy_(found.get(name, torch.zeros_like(parameter)))
    return peft_format.lora_tensors(holder) if isinstance(holder, LoadedModel) else get_peft_model_state_dict(holder)


@pytest.mark.parametrize(("kind", "options"), SOME, ids=str)
def test_peft_opens_it_with_equal_outputs_and_it_comes_back(kind, options, tmp_path) -> None:
    strategy, model = prepared(kind, **options)
    ours, plain = outputs(model.module), outputs(mixture(kind).module)
    strategy.save(model, tmp_path)
    assert_same(ours, outputs(in_peft(kind, tmp_path)), plain)
    again, folder = mixture(kind), tmp_path / "again"
    continued = LoRA(LoRAConfig(start_from=str(tmp_path), expert_a=options.get("expert_a", "own")))
    continued.prepare(again)
    assert torch.equal(outputs(again.module), ours)
    folder.mkdir()
    continued.save(again, folder)
    before, after = (load_file(place / FILE) for place in (tmp_path, folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("kind", MIXTURES)
def test_merged_it_opens_in_transformers_with_equal_outputs(kind, tmp_path) -> None:
    strategy, model = prepared(kind, targets="experts", expert_a="shared")
    ours, plain, cls = outputs(model.module), outputs(mixture(kind).module), type(mixture(kind).module)
    strategy.merge(model)
    assert not expert_layers(model.module)
    model.module.save_pretrained(tmp_path)
    assert_same(ours, outputs(cls.from_pretrained(tmp_path)), plain)


@pytest.mark.parametrize("names", [["experts.gate_up_proj", "experts.down_proj"], ["experts.down_proj", "gate.weight"]])
@pytest.mark.parametrize("kind", ["Olmoe", pytest.param("Mixtral", marks=pytest.mark.slow)])
def test_what_peft_trained_is_read_with_equal_outputs(kind, names, tmp_path) -> None:
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], target_parameters=names, use_rslora=True)
    torch.manual_seed(3)
    theirs = shaken(get_peft_model(mixture(kind).module, config))
    theirs.save_pretrained(tmp_path)
    model = mixture(kind)
    LoRA(LoRAConfig(start_from=str(tmp_path))).prepare(model)
    assert_same(outputs(model.module), outputs(theirs), outputs(mixture(kind).module))
    tensors, stored = peft_format.lora_tensors(model), load_file(tmp_path / FILE)
    assert tensors.keys() == stored.keys()
    assert all(torch.equal(tensors[key], stored[key]) for key in stored)


def test_a_layer_of_a_dense_part_keeps_its_name_beside_experts(tmp_path) -> None:
    """PEFT reads `gate_proj` in a model with experts as the experts' own."""
    strategy, model = prepared("DeepseekV3", targets=["gate_proj", "down_proj"])
    strategy.save(model, tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["target_modules"] == []
    assert len(content["target_parameters"]) == len(strategy.matches()["gate_proj"] + strategy.matches()["down_proj"])
    assert_same(outputs(model.module), outputs(in_peft("DeepseekV3", tmp_path)), outputs(mixture("DeepseekV3").module))


def test_one_a_for_all_experts_is_not_read_from_many(tmp_path) -> None:
    strategy, model = prepared("Olmoe", targets="experts")
    strategy.save(model, tmp_path)
    with raises(BaseMismatch, "expert_a"):
        LoRA(LoRAConfig(start_from=str(tmp_path), expert_a="shared")).prepare(mixture("Olmoe"))


def test_an_adapter_for_servers_has_no_experts(tmp_path) -> None:
    strategy, model = prepared("Olmoe")
    strategy.save(model, tmp_path)
    with raises(NotExportable, "gate_up_proj"):
        read_lora_config(tmp_path)
