"""Which parts of a vision-language model train: vision part, projector and language part by transformers' own names."""

import pytest
import torch
from vision_models import ARCHITECTURES, tiny

from ftengine import registry_of
from ftengine.api import LoadedModel
from ftengine.model import parameter_sizes
from ftengine_vision_language import ImageTextToText
from ftengine_vision_language.parts import LANGUAGE, PROJECTOR, VISION, parts_of, shares
from ftengine_vision_language.task import LANGUAGE_LAYERS

QUICK = ("llava", "qwen2_5_vl")
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in ARCHITECTURES]


def notes(name, strategy):
    """Return how many parameters of each part train, and the warnings, of a tiny model that a strategy prepared."""
    module, processor = tiny(name)
    loaded = LoadedModel(module, processor, "tiny", "image-text-to-text")
    chosen = registry_of().build("strategy", strategy, "strategy")
    module.requires_grad_(strategy["name"] == "full")
    chosen.prepare(loaded)
    facts, warnings = ImageTextToText(ImageTextToText.Config()).notes(loaded, chosen)
    assert len(facts) == 3
    return {part: trains for part, (trains, _) in shares(module).items()}, warnings


@pytest.mark.parametrize("name", EACH)
def test_each_parameter_belongs_to_a_part(name):
    module, _ = tiny(name)
    found = parts_of(module, parameter_sizes(module))
    assert set(found.values()) == {VISION, PROJECTOR, LANGUAGE}
    for path, part in found.items():
        named = [word for word in ("projector", "connector", "merger") if word in path]
        assert (part == PROJECTOR) == bool(named), path
        assert named or (part == LANGUAGE) == ("language_model" in path or "text_model" in path or "lm_head" in path)


@pytest.mark.parametrize("name", EACH)
def test_a_pattern_that_matches_the_vision_part_by_accident_is_named(name):
    """Names of layers that both parts have; the default, and a pattern for the vision part alone, are meant."""
    layers = {layer.rpartition(".")[2] for layer, _ in tiny(name)[0].named_modules() if ".vision" in f".{layer}"}
    trains, warnings = notes(name, {"name": "lora", "targets": "all-linear"})
    assert trains[VISION]
    [warning] = warnings
    assert "vision part" in warning
    assert "all-linear" in warning
    if "q_proj" in layers:
        assert notes(name, {"name": "lora", "targets": ["q_proj"]})[1]
    trains, warnings = notes(name, {"name": "lora", "targets": LANGUAGE_LAYERS})
    assert trains[LANGUAGE]
    assert not trains[VISION]
    assert not trains[PROJECTOR]
    assert not warnings
    trains, warnings = notes(
        name, {"name": "lora", "targets": r".*(vision_tower|vision_model|visual)\..*\.(q_proj|qkv)"}
    )
    assert trains[VISION]
    assert not warnings


def test_what_is_frozen_is_no_accident():
    trains, warnings = notes("llava", {"name": "full", "freeze": ["self_attn"]})
    assert trains[VISION]
    assert not warnings


def test_a_probe_keeps_no_weights_that_change_after_it():
    """A trained part is read in place after `set_model`, perhaps while another model is open in bfloat16."""
    module, processor = tiny("llava")
    own, loaded = ImageTextToText(), LoadedModel(module, processor, "tiny", "image-text-to-text")
    batch = own.probe_batch(loaded)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own.set_model(loaded, None)
        for parameter in module.parameters():
            parameter.mul_(2)
        found = module(**batch).logits
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, module(**batch).logits)
