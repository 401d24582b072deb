"""Models with LoRA, and odd layers for it to meet."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from ftengine.api import LoadedModel
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig


def prepared(loaded: LoadedModel, **options) -> LoRA:
    """Prepare a model for LoRA, the same way every time."""
    torch.manual_seed(0)
    strategy = LoRA(LoRAConfig(**options))
    strategy.prepare(loaded)
    return strategy


def opened_by_peft(base: nn.Module, folder: Path) -> PeftModel:
    """Open an adapter with PEFT; it must find every key it looks for, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        model = PeftModel.from_pretrained(copy.deepcopy(base), folder)
    result = model.load_adapter(folder, adapter_name="again")
    assert result.missing_keys == result.unexpected_keys == []
    in_file = load_file(folder / "adapter_model.safetensors")
    in_model = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert in_model.keys() == in_file.keys()
    assert all(torch.equal(in_model[key], in_file[key]) for key in in_file)
    return model


class PackedLinear(nn.Module):
    """A linear layer with int8 weights, as quantisers make them: no Linear, no float weight."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.in_features, self.out_features = n_in, n_out
        self.weight = nn.Parameter(torch.randint(-9, 9, (n_out, n_in), dtype=torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.float() * 0.1).T


class DoublingLinear(nn.Linear):
    """A Linear with a forward of its own: adding to its weight would double the update."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)
