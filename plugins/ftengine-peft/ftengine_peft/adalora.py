"""AdaLoRA, which adds a penalty to the loss and reallocates ranks after each step, by PEFT's own functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import AdaLoraModel, PeftConfig
from pydantic import model_validator
from torch import Tensor, nn

from ftengine import api
from ftengine.errors import BaseMismatch, RecipeError
from ftengine.ops import without_autocast
from ftengine_peft.files import CONFIG_FILE, require_same
from ftengine_peft.options import PeftOptions
from ftengine_peft.strategy import PeftStrategy

AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator remembers of each tensor from step to step: smoothed importance, and its uncertainty."""


class AdaLoraOptions(PeftOptions):
    """Options of AdaLoRA; the number of steps comes from the run."""

    def peft_config(self, **further: Any) -> PeftConfig:
        options: Any = self
        return super().peft_config(total_step=options.tinit + options.tfinal + 1, **further)

    @model_validator(mode="after")
    def _allocates(self) -> AdaLoraOptions:
        options: Any = self
        if not 0 < options.target_r < options.init_r:
            raise ValueError("target_r, the mean rank at the end, has to be below init_r, and above 0")
        if options.deltaT < 1 or not (0 < options.beta1 < 1 and 0 < options.beta2 < 1):
            raise ValueError("deltaT has to be 1 or more, and beta1 and beta2 between 0 and 1")
        return self


class AdaLoraStrategy(PeftStrategy):
    """Train AdaLoRA (Zhang et al. 2023)."""

    def prepare(self, loaded: api.LoadedModel) -> None:
        super().prepare(loaded)
        _freeze_counts(loaded.module)

    def regularizer(self, steps: int) -> api.Regularizer:
        """Return the rank allocation for a run of `steps` steps (RecipeError: too few steps to reallocate ranks)."""
        config: Any = self._model.peft_config["default"]
        if steps <= config.tinit + config.tfinal:
            raise RecipeError(
                f"strategy {self.name!r} moves ranks after its first tinit ({config.tinit:,}) and before its last "
                f"tfinal ({config.tfinal:,}) steps, and the run has {steps:,} in all. Lower them, or train longer."
            )
        config.total_step = steps
        return Allocation(self._tuner)

    def save(self, loaded: api.LoadedModel, directory: Path) -> None:
        """Write the files of PEFT's `save_pretrained`; the kept weights may be those of an earlier step.

        Ranks are the numbers of non-zero singular values.
        """
        config: Any = self._model.peft_config["default"]
        for name in config.rank_pattern or ():
            values = loaded.module.get_parameter(_with_adapter(name))
            if len(values) == len(config.rank_pattern[name]):  # else it was loaded, and has its rank
                config.rank_pattern[name] = (values != 0).flatten().tolist()
        super().save(loaded, directory)

    def load(self, loaded: api.LoadedModel, directory: Path) -> None:
        config: Any = self._model.peft_config["default"]
        require_same(config, type(self.config).model_fields, Path(directory))
        pattern = self._stored_pattern(loaded.module, Path(directory) / CONFIG_FILE)
        tensors = loaded.module.named_parameters()
        dtypes = {name: parameter.dtype for name, parameter in tensors if parameter.requires_grad}
        self._tuner.resize_modules_by_rank_pattern(pattern, "default")
        for name, dtype in dtypes.items():  # PEFT makes the smaller ones in the dtype of the layer
            parameter = loaded.module.get_parameter(name)
            parameter.data = parameter.data.to(dtype)
        _freeze_counts(loaded.module)
        super().load(loaded, directory)
        config.rank_pattern = pattern or None

    @property
    def _tuner(self) -> AdaLoraModel:
        return cast(AdaLoraModel, self._model.base_model)

    def _stored_pattern(self, module: nn.Module, file: Path) -> dict[str, list[bool]]:
        """Return which ranks of which layers a folder's file holds; {} where all (BaseMismatch: of other layers)."""
        pattern = json.loads(file.read_text(encoding="utf-8")).get("rank_pattern") or {}
        shapes = {name: len(p) for name, p in module.named_parameters() if ".lora_E." in name}
        given = {_with_adapter(name): kept for name, kept in pattern.items()}
        if pattern and {name: len(kept) for name, kept in given.items()} != shapes:
            raise BaseMismatch(f"{str(file)!r} has a rank_pattern of other layers or ranks than this model's.")
        return pattern


class Allocation(api.Regularizer):
    """AdaLoRA's penalty, and its allocation of ranks by the gradients of each step; `tuner` is PEFT's."""

    def __init__(self, tuner: AdaLoraModel) -> None:
        super().__init__()
        self._tuner = tuner

    def penalty(self, model: nn.Module, batch: api.Batch, loss: Tensor) -> Tensor:
        """Return γ times the mean of ‖A Aᵀ − I‖ and ‖Bᵀ B − I‖ (Frobenius) over all layers, as PEFT's `forward`."""
        matrices: list[Tensor] = [p for name, p in model.named_parameters() if ".lora_A." in name]
        matrices += [p.T for name, p in model.named_parameters() if ".lora_B." in name]
        with without_autocast(loss.device.type):
            apart = [torch.linalg.matrix_norm(m @ m.T - torch.eye(len(m), device=m.device)) for m in matrices]
            return self._config.orth_reg_weight * torch.stack(apart).mean()

    def on_step_end(self, model: nn.Module, step: int) -> None:
        adapter = [p for name, p in model.named_parameters() if "lora_" in name]
        finite = all(bool(p.grad.isfinite().all()) for p in adapter if p.grad is not None)
        for parameter in adapter:
            if parameter.grad is None or not finite:  # took no part, or the step was left out
                parameter.grad = torch.zeros_like(parameter)
        self._tuner.update_and_allocate(step)

    def state_dict(self) -> dict[str, Tensor]:
        allocator, pattern = self._tuner.rankallocator, self._config.rank_pattern or {}
        averages = {f"{kind}|{name}": x for kind in AVERAGES for name, x in getattr(allocator, kind).items()}
        return averages | {f"rank_pattern|{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        allocator, pattern = self._tuner.rankallocator, {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("|")
            if kind == "rank_pattern":
                pattern[name] = tensor.tolist()
            else:
                device = self._tuner.model.get_parameter(name).device
                getattr(allocator, kind)[name] = tensor.to(device)
                allocator.ipt[name] = torch.zeros_like(tensor, device=device)  # there; each step computes it anew
        self._config.rank_pattern = pattern or None

    @property
    def _config(self) -> Any:
        return self._tuner.peft_config["default"]


def _freeze_counts(module: nn.Module) -> None:
    """Freeze the numbers of ranks, constants that PEFT lets train where it moves them to another device."""
    for name, parameter in module.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)


def _with_adapter(name: str) -> str:
    """Return a parameter's name as the model has it; PEFT drops the adapter's when it saves."""
    return name if name.endswith(".default") else f"{name}.default"
