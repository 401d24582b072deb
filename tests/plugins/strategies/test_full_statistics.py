"""BatchNorm under full tuning: statistics stand still on purpose, or move on purpose and are saved."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import EvoNorm2dB0
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from transformers import ResNetConfig, ResNetForImageClassification

from ftengine.api import LoadedModel
from ftengine.engine.prepared_data import apply_strategy
from ftengine.model import state_tensors, trainable
from ftengine.model.parameters import frozen_tensors
from ftengine.training.modes import train_mode
from ftengine_builtins.strategies.full import Full


@pytest.fixture
def resnet() -> LoadedModel:
    config = ResNetConfig(depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8, layer_type="basic")
    torch.manual_seed(0)
    return LoadedModel(
        ResNetForImageClassification(config), None, "memory", "image-classification", new_modules=("classifier.1",)
    )


def learn(loaded: LoadedModel, steps: int = 2) -> None:
    """Train on random images, in the loop's own training mode."""
    optimizer = torch.optim.SGD(trainable(loaded.module).values(), lr=0.1)
    torch.manual_seed(1)
    for _ in range(steps):
        train_mode(loaded.module)
        loaded.module(pixel_values=torch.randn(4, 3, 32, 32), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers() if "running" in name}


def moved(loaded: LoadedModel, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in statistics(loaded.module).items() if not torch.equal(tensor, before[name])}


@torch.no_grad()
def outputs(module: nn.Module) -> torch.Tensor:
    torch.manual_seed(2)
    return module.eval()(pixel_values=torch.randn(4, 3, 32, 32)).logits


def test_statistics_stand_still_by_default_while_weights_train(resnet) -> None:
    apply_strategy(Full(), resnet)
    before = statistics(resnet.module)
    weights = {name: p.detach().clone() for name, p in resnet.module.named_parameters()}
    learn(resnet)
    assert moved(resnet, before) == set()
    norms = [name for name in weights if "normalization" in name]
    changed = {name for name, p in resnet.module.named_parameters() if not torch.equal(p, weights[name])}
    assert norms
    assert changed >= set(norms)


def test_statistics_move_where_they_are_trained_and_are_saved(resnet, tmp_path) -> None:
    again, strategy = copy.deepcopy(resnet), Full(Full.Config(batch_norm="train"))
    apply_strategy(strategy, resnet)
    before = statistics(resnet.module)
    learn(resnet)
    assert moved(resnet, before) == set(before)
    strategy.save(resnet, tmp_path)
    apply_strategy(strategy, again)
    strategy.load(again, tmp_path)
    assert torch.equal(outputs(again.module), outputs(resnet.module))


def test_statistics_of_frozen_layers_stand_still_where_others_move(resnet) -> None:
    apply_strategy(Full(Full.Config(batch_norm="train", freeze=["stages.0"])), resnet)
    before = statistics(resnet.module)
    learn(resnet)
    assert moved(resnet, before) == {name for name in before if ".stages.0." not in name}


def test_a_fresh_normalisation_learns_its_statistics() -> None:
    head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    loaded = LoadedModel(
        nn.ModuleDict({"base": nn.BatchNorm1d(4), "head": head}), None, "memory", "some-head", ("head",)
    )
    apply_strategy(Full(), loaded)
    train_mode(loaded.module)
    assert loaded.module["head"][0].training
    assert not loaded.module["base"].training


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("kind", ["evonorm", "spectral norm"])
def test_no_buffer_of_what_is_frozen_moves_and_those_that_move_are_part_of_what_trains(kind, trains) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    first = spectral_norm(layer) if kind == "spectral norm" else nn.Sequential(layer, EvoNorm2dB0(4))
    module = nn.Sequential(first, nn.Flatten(), nn.Linear(4 * 36, 2))
    first.requires_grad_(trains)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    train_mode(module)
    for _ in range(2):
        module(torch.randn(4, 3, 8, 8)).sum().backward()
    moved = {name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == (set(before) if trains else set())
    assert moved <= state_tensors(module).keys()
    assert not moved & frozen_tensors(module).keys()


def test_what_is_frozen_narrower_is_saved_and_read_back_exactly(tmp_path, bert_folder, load) -> None:
    from ftengine.parallel.precision import Precision, apply_precision

    def ready() -> tuple[LoadedModel, Full]:
        loaded, strategy = load(bert_folder, "sequence-classification"), Full(Full.Config(freeze=["embeddings"]))
        apply_strategy(strategy, loaded)
        apply_precision(loaded.module, Precision(torch.bfloat16, torch.bfloat16, "asked"))
        return loaded, strategy

    (first, strategy), (second, _) = ready(), ready()
    with torch.no_grad():
        for parameter in trainable(first.module).values():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
    strategy.save(first, tmp_path)
    assert first.module.bert.embeddings.word_embeddings.weight.dtype is torch.bfloat16
    strategy.load(second, tmp_path)
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[name], tensor), name
    opened = type(first.module).from_pretrained(tmp_path)  # as anybody does
    assert torch.equal(opened.classifier.weight, first.module.classifier.weight)
