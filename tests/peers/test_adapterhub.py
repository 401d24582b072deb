"""AdapterHub's library and ftengine give the same outputs, whoever made the adapter.

The library pins an older transformers, so it runs in an environment of its own: `make test-peers` makes
one and names its Python in FTENGINE_ADAPTERHUB_PYTHON. Everything is exchanged as files and computed in float64.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from peer_models import ARCHITECTURES, fresh, inputs
from peer_programs import claimed
from safetensors.torch import load_file, save_file

from ftengine.api import LoadedModel
from ftengine_builtins.strategies.adapter import Adapter, AdapterConfig
from ftengine_builtins.strategies.adapterhub_format import MODEL_TYPES

PYTHON = os.environ.get("FTENGINE_ADAPTERHUB_PYTHON")

pytestmark = pytest.mark.skipif(not PYTHON, reason="needs the adapters library; run make test-peers")

OPTIONS = {
    "houlsby": {"placement": "houlsby"},
    "pfeiffer": {"placement": "pfeiffer"},
    "parallel": {"placement": "parallel"},
    "odd": {"placement": "pfeiffer", "sublayers": ["attention", "output"], "bottleneck": 5, "scaling": 0.5,
            "non_linearity": "gelu_new", "leave_out": [1]},
    "pickle": {"placement": "houlsby", "non_linearity": "leakyrelu"},
}  # fmt: skip

CONFIGS = {
    "houlsby": {"mh_adapter": True, "output_adapter": True, "reduction_factor": 16, "non_linearity": "swish"},
    "pfeiffer": {"mh_adapter": False, "output_adapter": True, "reduction_factor": 16, "non_linearity": "relu",
                 "original_ln_before": True},
    "parallel": {"mh_adapter": False, "output_adapter": True, "reduction_factor": 2, "non_linearity": "relu",
                 "is_parallel": True, "scaling": 4.0, "init_weights": "mam_adapter"},
    "odd": {"mh_adapter": True, "output_adapter": True, "reduction_factor": {"0": 6, "default": 4},
            "non_linearity": "gelu_new", "original_ln_before": True, "scaling": 0.5, "leave_out": [1]},
    "pickle": {"mh_adapter": True, "output_adapter": True, "reduction_factor": 16, "non_linearity": "leakyrelu"},
}  # fmt: skip
"""What the library is asked for: its presets, and what strays from them."""

KINDS = ("bert", "roberta", "distilbert", "gpt2", "llama", "t5", "vit")
OTHERS = (
    *("llama-classifier", "gpt2-classifier", "bert-tokens", "mistral", "qwen2", "qwen3", "electra"),
    *("deberta-v2", "xlm-roberta"),
)
"""With them, all of the models for which ftengine's files say that they are AdapterHub's."""
CASES = [(kind, name) for kind in KINDS for name in OPTIONS] + [(kind, "houlsby") for kind in OTHERS]
BOUND = 1e-6
"""Largest relative difference. What is left is Llama's and T5's normalisation, which is float32 in any model."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with the models, ftengine's adapters, and what the library made of everything."""
    place = tmp_path_factory.mktemp("adapterhub")
    jobs = []
    for kind in (*KINDS, *OTHERS):
        write_model(place, kind)
    for kind, name in CASES:
        ours = place / f"ours-{kind}-{name}"
        write_adapter(place, kind, OPTIONS[name], ours)
        job = {
            "model": str(place / kind),
            "class": ARCHITECTURES[kind].model,
            "batch": str(place / f"{kind}.safetensors"),
        }
        jobs.append({**job, "adapter": str(ours / "adapter"), "out": str(ours)})
        theirs = CONFIGS[name] | ({"cross_adapter": True} if kind == "t5" and name == "houlsby" else {})
        jobs.append({**job, "config": theirs, "pickle": name == "pickle", "out": str(place / f"theirs-{kind}-{name}")})
    (place / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("adapterhub_library.py")
    done = subprocess.run(
        [PYTHON, script, place / "jobs.json"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return place


def write_model(place: Path, kind: str) -> None:
    """Write a model that both versions of transformers read, and a batch for it."""
    fresh(kind).save_pretrained(place / kind)
    save_file(inputs(kind), place / f"{kind}.safetensors")


def opened(place: Path, kind: str) -> LoadedModel:
    about = ARCHITECTURES[kind]
    module = getattr(transformers, about.model).from_pretrained(place / kind)
    return LoadedModel(module, None, str(place / kind), about.head, new_modules=about.new)


def prepared(place: Path, kind: str, options: dict) -> tuple[Adapter, LoadedModel]:
    loaded, strategy = opened(place, kind), Adapter(AdapterConfig(**options))
    strategy.prepare(loaded)
    return strategy, loaded


def write_adapter(place: Path, kind: str, options: dict, folder: Path) -> None:
    """Save an adapter of ftengine's with random weights, and its outputs."""
    strategy, loaded = prepared(place, kind, options)
    torch.manual_seed(2)
    for parameter in loaded.module.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    (folder / "adapter").mkdir(parents=True)
    strategy.save(loaded, folder / "adapter")
    save_file({"ours": outputs(place, kind, loaded)}, folder / "ours.safetensors")


@torch.no_grad()
def outputs(place: Path, kind: str, loaded: LoadedModel) -> torch.Tensor:
    batch = load_file(place / f"{kind}.safetensors")
    batch = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in batch.items()}
    return loaded.module.eval().double()(**batch).logits.contiguous()


def assert_same(ours: torch.Tensor, theirs: dict[str, torch.Tensor]) -> None:
    """Assert that outputs agree, and that the adapter matters a thousand times more than the bound."""
    size = theirs["adapted"].norm()
    assert (theirs["adapted"] - theirs["base"]).norm() / size > 1000 * BOUND
    assert (ours - theirs["adapted"]).norm() / size < BOUND


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_library_opens_our_adapter_with_equal_outputs(workplace, kind: str, name: str) -> None:
    folder = workplace / f"ours-{kind}-{name}"
    assert claimed(folder / "adapter") == "AdapterHub"
    found = json.loads((folder / "found.json").read_text())
    assert "error" not in found, found
    assert found["missing"] == found["unexpected"] == []
    assert found["of_file"]
    assert found["head"] is (True if ARCHITECTURES[kind].new else None)
    assert_same(load_file(folder / "ours.safetensors")["ours"], load_file(folder / "outputs.safetensors"))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_we_open_the_librarys_adapter_with_equal_outputs(workplace, kind: str, name: str) -> None:
    folder = workplace / f"theirs-{kind}-{name}"
    assert "error" not in (found := json.loads((folder / "found.json").read_text())), found
    _, loaded = prepared(workplace, kind, {"start_from": str(folder / "adapter")})
    assert_same(outputs(workplace, kind, loaded), load_file(folder / "outputs.safetensors"))


def test_every_model_documented_to_open_there_was_opened():
    types = {fresh(kind).config.model_type for kind in (*KINDS, *OTHERS)}
    assert types == MODEL_TYPES
