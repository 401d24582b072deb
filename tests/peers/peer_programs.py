"""Other programs: which one a saved folder says that it is for, and how each opens it, without ftengine."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peer_models import ARCHITECTURES, fresh
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

OURS = "ftengine"
"""What opens a folder that says nothing of another program."""


def claimed(folder: Path) -> str:
    """Return the program that a folder is for, by what its files say to that program."""
    if (adapter := folder / "adapter_config.json").exists():
        content = json.loads(adapter.read_text())
        return "PEFT" if "peft_type" in content else "AdapterHub"
    if (config := folder / "config.json").exists() and (folder / "model.safetensors").exists():
        content = json.loads(config.read_text())
        return "transformers" if "model_type" in content else content.get("library", "timm")
    return OURS


def in_peft(name: str, folder: Path) -> nn.Module:
    """Open an adapter with PEFT; it must find every key that it looks for, and nothing else."""
    base = fresh(name, without_head=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        model = PeftModel.from_pretrained(base, folder)
    stored = load_file(folder / "adapter_model.safetensors")
    opened = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert opened.keys() == stored.keys()
    assert all(torch.equal(opened[key], stored[key]) for key in stored)
    return model


def in_transformers(name: str, folder: Path) -> nn.Module:
    """Open a model with the auto class of its head."""
    auto = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
        "sequence-classification": transformers.AutoModelForSequenceClassification,
        "token-classification": transformers.AutoModelForTokenClassification,
        "image-classification": transformers.AutoModelForImageClassification,
    }[ARCHITECTURES[name].head]
    model, info = auto.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values()), info
    assert type(model).__name__ == ARCHITECTURES[name].model
    return model


def in_timm(name: str, folder: Path) -> nn.Module:
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True)


def in_torchvision(name: str, folder: Path) -> nn.Module:
    import torchvision

    model = torchvision.models.get_model(ARCHITECTURES[name].model, num_classes=3)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


PROGRAMS: dict[str, Callable[[str, Path], nn.Module]] = {
    "PEFT": in_peft,
    "transformers": in_transformers,
    "timm": in_timm,
    "torchvision": in_torchvision,
}
"""Of those that run beside ftengine: opens a folder for a model of `ARCHITECTURES`. AdapterHub's has its own test."""


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, base: torch.Tensor) -> None:
    """Assert that outputs agree to rounding, and that what was trained matters a thousand times more."""
    size = theirs.norm()
    assert (theirs - base).norm() > 1e-2 * size
    assert (theirs - ours).norm() <= 1e-5 * size
