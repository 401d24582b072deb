"""The layer that gives the numbers of a regression: in the units of the data, and standardised while it trains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ftengine.text import number

if TYPE_CHECKING:
    from ftengine.api import Labels, LoadedModel

FAR = 10.0
"""Standard deviations from 0 to the mean, from which a layer without a bias learns numbers badly: a tiny Llama's R² is
0.89 at 3 and 0.83 at 10 of them, and below 0 at 400."""


class TargetScale:
    """Forward hook of the linear layer whose outputs are the numbers to be learnt, in at least float32.

    Files hold the layer in the units of the data, y = x Wᵀ + b, and whatever opens them needs nothing else. While it
    trains, its parameters are those of standardised targets, y = std · (x Wᵀ + b) + mean: the same function, of which
    an optimiser's steps have the size that learning rates are made for. A layer without a bias cannot hold the mean;
    there the mean is 0 and std the root mean square of the targets.
    """

    def __init__(self, layer: nn.Linear, mean: float, std: float) -> None:
        self.targets = mean, std
        if layer.bias is None:
            mean, std = 0.0, math.hypot(mean, std)
        self.mean, self.std, self.standardised = mean, std, False

    def __call__(self, layer: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if output.dtype in (torch.bfloat16, torch.float16):  # 3 digits: of years, no difference would be left
            x = args[0].float()
            with torch.autocast(x.device.type, enabled=False):
                output = x @ layer.weight.float().T
            output = output if layer.bias is None else output + layer.bias
        return output * self.std + self.mean if self.standardised else output

    @torch.no_grad()
    def to_units(self, layer: nn.Linear) -> None:
        """Turn parameters of standardised targets into those in the units of the data."""
        layer.weight.mul_(self.std)
        if layer.bias is not None:
            layer.bias.mul_(self.std).add_(self.mean)
        self.standardised = False

    @torch.no_grad()
    def to_standard(self, layer: nn.Linear) -> None:
        """Turn parameters in the units of the data into those of standardised targets."""
        layer.weight.div_(self.std)
        if layer.bias is not None:
            layer.bias.sub_(self.mean).div_(self.std)
        self.standardised = True


def scale_targets(loaded: LoadedModel, labels: Labels | None) -> None:
    """Give the layer of a base that gives numbers its scale, and a new one the mean and spread of the targets.

    Nothing changes where the targets have no known scale, or no linear layer has so many outputs.
    """
    if labels is None or labels.mean is None or labels.std is None:
        return
    prefix = f"{getattr(loaded.module, 'base_model_prefix', '') or '-'}."
    layers = [(name, x) for name, x in loaded.module.named_modules() if isinstance(x, nn.Linear)]
    layers = [(name, x) for name, x in layers if x.out_features == len(labels.names) and not name.startswith(prefix)]
    if not layers:
        return
    name, layer = layers[-1]
    scale = TargetScale(layer, labels.mean, labels.std)
    layer.register_forward_hook(scale)
    if any(name == new or name.startswith(f"{new}.") for new in loaded.new_modules):
        if layer.weight.dtype is torch.float16:  # ends at 65,504
            layer.float()
        scale.to_units(layer)


class StandardisedTargets:
    """The layers of a model that have a `TargetScale`, standardised until `restore`."""

    def __init__(self, module: nn.Module) -> None:
        self._scales = [
            (layer, hook)
            for layer in module.modules()
            if isinstance(layer, nn.Linear)
            for hook in layer._forward_hooks.values()
            if isinstance(hook, TargetScale)
        ]
        self._frozen = [
            (parameter, parameter.detach().clone())
            for layer, _ in self._scales
            for parameter in layer.parameters()
            if not parameter.requires_grad
        ]
        for layer, scale in self._scales:
            scale.to_standard(layer)

    def advice(self) -> str:
        """Say where a layer cannot hold the mean of the targets, beside which their spread is small; else ""."""
        for layer, scale in self._scales:
            if layer.bias is None and abs(scale.targets[0]) >= FAR * scale.targets[1]:
                mean, std = map(number, scale.targets)
                return (
                    f"the numbers to be learnt are {mean} on average with a standard deviation of {std}, and this "
                    f"model's output layer has no bias that could hold that: subtract {mean} from them in the data, or "
                    "choose a model whose output layer has one (BERT and other encoders)"
                )
        return ""

    @torch.no_grad()
    def restore(self) -> None:
        """Put the layers back into the units of the data; what never trained is what it was, to the bit."""
        for layer, scale in self._scales:
            scale.to_units(layer)
        for parameter, before in self._frozen:
            if not parameter.requires_grad:
                parameter.copy_(before)
