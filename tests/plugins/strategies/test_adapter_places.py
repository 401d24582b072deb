"""Where adapters go: known blocks by their shape, any other model by the recipe's patterns."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from adapter_models import batch, bottlenecks, logits, opened, prepared, shake
from expected import raises
from pydantic import ValidationError
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
)

from ftengine.api import LoadedModel
from ftengine.errors import NoMatch, RecipeError
from ftengine.model import trainable
from ftengine_builtins.strategies.adapter import Adapter, AdapterConfig
from ftengine_builtins.strategies.adapter_places import find

OPT_PLACES = {"attention": r".*\.layers\.\d+\.self_attn", "feed_forward": r".*\.layers\.\d+\.fc2"}

PLACES = {
    "gpt2": {"attention": "transformer.h.{}.attn", "output": "transformer.h.{}.mlp"},
    "llama": {"attention": "model.layers.{}.self_attn", "output": "model.layers.{}.mlp"},
    "bert": {
        "attention": "bert.encoder.layer.{}.attention.output.dropout",
        "output": "bert.encoder.layer.{}.output.dropout",
    },
    "roberta": {
        "attention": "roberta.encoder.layer.{}.attention.output.dropout",
        "output": "roberta.encoder.layer.{}.output.dropout",
    },
    "distilbert": {
        "attention": "distilbert.transformer.layer.{}.attention",
        "output": "distilbert.transformer.layer.{}.ffn",
    },
    "vit": {"attention": "vit.layers.{}.attention", "output": "vit.layers.{}.mlp"},
}


@pytest.mark.parametrize("name", PLACES)
def test_houlsby_adapts_attention_and_feed_forward_of_every_block(name: str) -> None:
    strategy, _ = prepared(name, placement="houlsby")
    assert strategy.matches() == {kind: [path.format(i) for i in (0, 1)] for kind, path in PLACES[name].items()}


@pytest.mark.parametrize("placement", ["pfeiffer", "parallel"])
@pytest.mark.parametrize("name", PLACES)
def test_other_placements_adapt_the_feed_forward_alone(name: str, placement: str) -> None:
    strategy, _ = prepared(name, placement=placement)
    assert strategy.matches() == {"output": [PLACES[name]["output"].format(i) for i in (0, 1)]}


@pytest.mark.parametrize("side", [5, 6])
def test_a_parallel_convolution_reads_the_blocks_input_with_its_stride(side: int) -> None:
    _, loaded = prepared("resnet", placement="parallel")
    shake(loaded.module)
    block, plain = (part.module.resnet.encoder.stages[1].layers[0] for part in (loaded, opened("resnet")))
    adapter = block.bottleneck
    down, up = nn.Conv2d(16, 8, 1, stride=2), nn.Conv2d(8, 32, 1)
    for convolution, linear in ((down, adapter.down), (up, adapter.up)):
        convolution.load_state_dict({"weight": linear.weight[..., None, None], "bias": linear.bias})
    x = torch.randn(2, 16, side, side)
    torch.testing.assert_close(block(x), plain(x) + 4 * up(down(x).relu()))


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 2, padding=1), nn.ConvTranspose2d(8, 8, 3, padding=1)],
    ids=["unpadded", "even", "transposed"],
)
def test_parallel_is_refused_where_a_named_convolution_makes_another_grid(layer: nn.Module) -> None:
    loaded = LoadedModel(nn.ModuleDict({"layer": layer}), None, "memory", "image-classification")
    strategy = Adapter(AdapterConfig(placement="parallel", places={"output": "layer"}))
    with raises(NoMatch, "layer"):
        strategy.prepare(loaded)


def test_a_grid_that_no_stride_gives_is_an_error() -> None:
    module = nn.ModuleDict({"layer": nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.AvgPool2d(4, stride=1))})
    strategy = Adapter(AdapterConfig(placement="parallel", places={"output": "layer"}))
    strategy.prepare(LoadedModel(module, None, "memory", "image-classification"))
    with raises(NoMatch, "(2, 8, 9, 9)", "(2, 8, 6, 6)"):
        module["layer"](torch.randn(2, 8, 9, 9))


def test_a_block_with_other_norms_is_not_taken_for_a_known_one() -> None:
    """Gemma 2 has all of Llama's names, but its post_attention_layernorm follows the attention's output."""
    config = Gemma2Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    with torch.device("meta"):
        module = Gemma2ForCausalLM(config)
    with raises(NoMatch, "Gemma2ForCausalLM"):
        find(module)


class Convolutions(nn.Module):
    """A block with the names that torchvision and timm give."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


def test_torchvisions_blocks_are_known() -> None:
    module = nn.ModuleDict({"layer1": nn.Sequential(Convolutions())})
    strategy = Adapter(AdapterConfig())
    strategy.prepare(LoadedModel(module, None, "memory", "image-classification"))
    assert strategy.matches() == {"output": ["layer1.0"]}
    shake(module)
    assert module["layer1"](torch.randn(2, 3, 5, 7)).shape == (2, 12, 5, 7)


class Transposed(nn.Sequential):
    """A convolution along the words of (batch, words, width)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def placed(layer: nn.Module) -> nn.Module:
    module = nn.ModuleDict({"layer": layer})
    loaded = LoadedModel(module, None, "memory", "image-classification")
    Adapter(AdapterConfig(places={"output": "layer"}, bottleneck=3)).prepare(loaded)
    shake(module)
    return module["layer"].eval()


def test_a_part_with_the_adapters_name_is_not_overwritten() -> None:
    layer = nn.Sequential(OrderedDict(bottleneck=nn.Linear(8, 8)))
    with raises(NoMatch, "layer"):
        placed(layer)


def test_channels_elsewhere_than_the_last_layer_says_are_an_error() -> None:
    with raises(NoMatch, "width 8", "(2, 5, 8)"):
        placed(Transposed(nn.Conv1d(8, 8, 1)))(torch.randn(2, 5, 8))


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_an_unknown_model_trains_with_named_places(placement: str) -> None:
    base = logits(opened("opt").module)
    # fc2 reads what is wider than its output, so that parallel can only stand beside the attention.
    places = {"attention": OPT_PLACES["attention"]} if placement == "parallel" else OPT_PLACES
    strategy, loaded = prepared("opt", placement=placement, places=places)
    assert list(strategy.matches()) == list(places)
    assert torch.equal(logits(loaded.module), base)
    loss = loaded.module(**batch(loaded.module)).loss
    loss.backward()
    assert all(p.grad is not None for p in trainable(loaded.module).values())
    shake(loaded.module)
    assert not torch.equal(logits(loaded.module), base)


def test_an_unknown_model_is_refused_with_modules_to_name() -> None:
    with raises(NoMatch, "OPTForCausalLM", "strategy.places=", "fc2"):
        prepared("opt")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"x": r".*\.layers\.\d+\.fc3"}, "fc2"),
        ({"x": r".*\.layers\.\d+(\.fc2)?"}, "'model.decoder.layers.0.fc2'"),
        ({"x": r".*\.final_layer_norm"}, "LayerNorm"),
        ({"x": r".*\.fc2", "y": r".*\.fc2"}, "'model.decoder.layers.0.fc2'"),
    ],
)
def test_patterns_that_mean_nothing_are_refused(places, message) -> None:
    with raises(NoMatch, message):
        prepared("opt", places=places)


def test_parallel_is_refused_where_the_input_is_wider_than_the_output() -> None:
    with raises(NoMatch, "fc2'", "24", "16"):
        prepared("opt", placement="parallel", places={"output": r".*\.fc2"})


def test_what_cannot_be_adapted_is_refused() -> None:
    _, loaded = prepared("gpt2")
    with raises(NoMatch, "already"):
        Adapter(AdapterConfig()).prepare(loaded)
    shared = opened("gpt2")
    shared.module.transformer.h[1].mlp = shared.module.transformer.h[0].mlp
    with raises(NoMatch, "several names"):
        Adapter(AdapterConfig()).prepare(shared)
    hooked = opened("gpt2")
    hooked.module.transformer.h[1].ln_2.forward = lambda x: x
    with raises(NoMatch, "'transformer.h.1.ln_2'"):
        Adapter(AdapterConfig()).prepare(hooked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sublayers": ["atention"]}, "'atention'"),
        ({"sublayers": ["cross"]}, "'cross'"),
        ({"leave_out": [2]}, "no block 2"),
        ({"reduction_factor": {7: 2, "default": 4}}, "no block 7"),
        ({"leave_out": [0, 1]}, "leaves out every block"),
    ],
)
def test_choices_that_the_model_lacks_are_refused(options, message: str) -> None:
    with raises(NoMatch, message):
        prepared("gpt2", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "hulsby"}, "houlsby"),
        ({"reduction_factor": 0}, "greater than 0"),
        ({"reduction_factor": {"default": -1}}, "greater than 0"),
        ({"reduction_factor": {"first": 2}}, "mapping from block numbers"),
        ({"reduction_factor": {0: "wide"}}, "valid number"),
        ({"reduction_factor": {1.5: 2}}, "mapping from block numbers"),
        ({"places": {}}, "places"),
        ({"sublayers": []}, "sublayers"),
        ({"scaling": 0}, "greater than 0"),
        ({"non_linearity": "rleu"}, "relu"),
        ({"places": {"output": "("}}, "not a regular expression"),
        ({"bottleneck": 0}, "1"),
        ({"rank": 4}, "Extra inputs"),
    ],
)
def test_options_out_of_range_are_refused(options, message: str) -> None:
    with raises(ValidationError, message):
        AdapterConfig(**options)


def test_two_sizes_are_refused() -> None:
    with raises(RecipeError, "bottleneck 8", "reduction_factor 16"):
        AdapterConfig(bottleneck=8, reduction_factor=16)


def test_a_reduction_factor_by_layer_needs_every_layer() -> None:
    _, loaded = prepared("gpt2", reduction_factor={"0": 4, "default": 8})
    assert [adapter.down.out_features for adapter in bottlenecks(loaded.module).values()] == [4, 2]
    _, loaded = prepared("gpt2", reduction_factor={0: 4, "default": 8})  # as YAML reads it
    assert [adapter.down.out_features for adapter in bottlenecks(loaded.module).values()] == [4, 2]
    with raises(RecipeError, "layer 1", "'default'"):
        prepared("gpt2", reduction_factor={"0": 4})
