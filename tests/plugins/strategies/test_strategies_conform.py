"""Every registered strategy keeps what the engine relies on, with its defaults and with what changes most."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_t5

from ftengine.api import Labels, LoadedModel, LoadRequest
from ftengine.plugins.registry import Registry
from ftengine.testing import check_strategy

REGISTRY = Registry()
NAMES = [entry.name for entry in REGISTRY.entries("strategy")]
VARIANTS = [
    {"name": "adapter", "placement": "houlsby", "init": "bert", "dropout": 0.1},
    {"name": "adapter", "placement": "parallel", "bottleneck": 3},
    {"name": "full", "layer_decay": 0.5, "unfreeze_every": 1},
    {"name": "lora", "rslora": True, "lr_ratio": 4},
    {"name": "lora", "dora": True, "dropout": 0.2},
    {"name": "lora", "init": "pissa", "dora": True},
    {"name": "lora", "init": "olora"},
    {"name": "prefix", "projection": 8},
    {"name": "prompt", "init": "random"},
]
MODELS = {
    "llama": ("causal-lm", None),
    "gpt2": ("causal-lm", None),
    "bert": ("sequence-classification", Labels("single", ("a", "b", "c"))),
    "t5": ("seq2seq-lm", None),
}
CASES = [(model, {"name": name}) for model in MODELS for name in NAMES if (model, name) != ("t5", "prefix")]
CASES += [(model, spec) for model in ("llama", "bert") for spec in VARIANTS]
"""Each strategy with its defaults on every model (an encoder takes no cache), variants on a decoder and an encoder."""


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    return tiny_t5(tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="module")
def base(request) -> LoadedModel:
    torch.manual_seed(0)
    head, labels = MODELS[request.param]
    loader = REGISTRY.build("loader", "transformers", "model.loader")
    return loader.load(LoadRequest(str(request.getfixturevalue(f"{request.param}_folder")), head, labels))


@pytest.mark.parametrize(("base", "spec"), CASES, indirect=["base"], ids=str)
def test_strategies_in_the_box_pass(base, spec):
    ids = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 2])}
    batch |= {} if base.labels else {"labels": ids}
    check_strategy(lambda: REGISTRY.build("strategy", spec, "strategy"), lambda: copy.deepcopy(base), batch)
