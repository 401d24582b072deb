"""The dtypes in which a run computes, and the reasons for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.errors import RecipeError
from ftengine.model import has_running_statistics


@dataclass(frozen=True)
class Precision:
    """The dtype of matrix products under autocast (float32: no autocast), that of frozen weights, and the reason."""

    compute: torch.dtype
    frozen: torch.dtype
    reason: str

    @property
    def accelerate_name(self) -> str:
        """The name that Accelerate uses."""
        return {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.compute]

    @property
    def name(self) -> str:
        return str(self.compute).removeprefix("torch.")


def choose_precision(requested: str, dtype: str, device: torch.device) -> Precision:
    """Resolve `train.precision` and `model.dtype` ("auto" keeps frozen weights in the compute dtype) for a device.

    Raises:
        RecipeError: the device does not support the dtype, or the two contradict each other.
    """
    if requested == "auto" and dtype not in ("auto", "float32"):
        compute, reason = getattr(torch, dtype), f"model.dtype is {dtype}"
    elif requested == "auto":
        native, reason = native_bfloat16(device)
        compute = torch.bfloat16 if native else torch.float32
    else:
        compute, reason = getattr(torch, requested), "the recipe asks for it"
    if compute is torch.float16 and device.type != "cuda":
        raise RecipeError(
            f"float16 trains only on a GPU, but this device is {device.type!r}. Use bfloat16, float32 or auto "
            "for train.precision and model.dtype."
        )
    frozen = compute if dtype == "auto" else getattr(torch, dtype)
    if compute is torch.float32 and frozen is not torch.float32:
        raise RecipeError(
            f"train.precision float32 contradicts model.dtype {dtype}: frozen weights would have to be widened "
            "at every use. Set both to the same dtype, or leave one at auto."
        )
    return Precision(compute, frozen, reason)


def native_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Return whether the device multiplies bfloat16 natively, and the reason in words."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return native, "the GPU multiplies bfloat16 natively" if native else "the GPU has no native bfloat16"
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
        return native, "the CPU multiplies bfloat16 natively" if native else "the CPU has no native bfloat16"
    return False, f"device {device.type!r} is used in float32"


def apply_precision(module: nn.Module, precision: Precision) -> None:
    """Keep trainable parameters in float32 (as master weights) and frozen ones in `precision.frozen`.

    Vectors of a module that also holds a trainable vector, or running statistics, stay in float32 with those:
    normalisation layers take all of one dtype. Buffers stay as they are: rotary frequencies and running statistics
    lose meaning when rounded.
    """
    for part in module.modules():
        own = [p for p in part.parameters(recurse=False) if p.is_floating_point()]
        wide = any(p.requires_grad and p.ndim <= 1 for p in own) or has_running_statistics(part)
        for parameter in own:
            master = parameter.requires_grad or (wide and parameter.ndim <= 1)
            dtype = torch.float32 if master else precision.frozen
            if parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)


def widened_by(layers: Iterable[tuple[str, nn.Module]], run: Callable[[], object]) -> list[str]:
    """Return the paths of layers that return float32 for a narrower input, in the order in which `run` calls them.

    A following layer with narrower parameters may refuse float32, as layer norms on CPUs do.
    """
    widened: dict[str, None] = {}

    def look(path: str, inputs: tuple[Any, ...], output: Any) -> None:
        narrow = [x for x in inputs if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16)]
        if narrow and isinstance(output, Tensor) and output.dtype is torch.float32:
            widened[path] = None

    handles = [
        layer.register_forward_hook(lambda _, inputs, output, path=path: look(path, inputs, output))
        for path, layer in layers
    ]
    try:
        run()
    except RuntimeError:  # the error that the caller explains
        pass
    finally:
        for handle in handles:
            handle.remove()
    return list(widened)
