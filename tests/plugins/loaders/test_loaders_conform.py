"""Every registered loader keeps what the engine relies on, on a small source that needs no network."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

from ftengine.api import Labels, LoadRequest
from ftengine.plugins.registry import Registry
from ftengine.testing import check_loader
from ftengine_builtins.loaders.transformers import TransformersLoader

REGISTRY = Registry()
ABC = Labels("single", ("a", "b", "c"))
RANDOM = {"weights": "random", "image_size": 32}


@pytest.fixture
def sources(llama_folder, tiny_gguf, tmp_path, monkeypatch):
    """For each loader its options and what to load with it."""
    (tmp_path / "carrier").mkdir()
    shutil.copy(tiny_gguf, tmp_path / "carrier" / "tiny.gguf")
    (tmp_path / "carrier" / "__init__.py").touch()
    (tmp_path / "own_models.py").write_text("from torch import nn\ndef small():\n    return nn.Linear(4, 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return {
        "callable": ({}, LoadRequest("own_models:small", "sequence-classification", ABC)),
        "gguf": ({}, LoadRequest(str(tiny_gguf), "sequence-classification", ABC)),
        "package": ({}, LoadRequest("package://carrier/tiny.gguf", "causal-lm")),
        "timm": (RANDOM, LoadRequest("timm://test_resnet", "image-classification", ABC)),
        "torchvision": (RANDOM, LoadRequest("torchvision://resnet18", "image-classification", ABC)),
        "transformers": ({}, LoadRequest(str(llama_folder), "sequence-classification", ABC)),
    }


@pytest.mark.parametrize("name", [entry.name for entry in REGISTRY.entries("loader")])
def test_loaders_in_the_box_pass(name, sources):
    if name in ("timm", "torchvision") and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    options, request = sources[name]
    check_loader(lambda: REGISTRY.build("loader", {"name": name, **options}, "model.loader"), request)


class Careless(TransformersLoader):
    """Fails in each way that the checks look for."""

    def accepts(self, source):
        return len(json.loads(source)) > 0

    def check_source(self, source):
        pass

    def load_processor(self, source):
        return object()

    def load(self, request):
        loaded = super().load(request)
        torch.nn.init.uniform_(loaded.module.lm_head.weight, 0, random.random())
        return replace(loaded, head="", processor=None)

    load_skeleton = load

    def runs_code(self, source):
        return True


def test_a_careless_loader_fails_every_check(llama_folder):
    with pytest.raises(AssertionError) as caught:
        check_loader(Careless, LoadRequest(str(llama_folder), "causal-lm"))
    for name in (
        "accepting_is_quick_and_raises_nothing",
        "it_loads_what_was_asked",
        "the_skeleton_is_the_model_without_values",
        "a_seed_decides_what_it_loads",
        "the_processor_alone_is_the_models",
        "missing_sources_are_source_errors",
        "what_runs_beside_plugins_is_named",
    ):
        assert name in str(caught.value)
