"""The output layer of a regression: standardised in training, in the data's units in files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftengine.model.in_float32 import HALVES
from ftengine.text import number

if TYPE_CHECKING:
    from ftengine.api import Labels, LoadedModel

FAR = 10.0
"""Standard deviations from 0 to the mean, from which a layer without a bias learns numbers badly: a tiny Llama's R² is
0.89 at 3 and 0.83 at 10 of them, and below 0 at 400."""

FEW_ROUNDINGS = 10.0
"""Roundings of float32 at the mean, in a standard deviation, below which numbers are hardly told from one another."""

OutputLayer = nn.Linear | nn.Conv2d


class TargetScale:
    """Forward hook of a layer whose outputs are the target numbers, in at least float32.

    Saved files hold the layer in the units of the data, y = x Wᵀ + b. During training its parameters are those of
    standardised targets, y = std · (x Wᵀ + b) + mean: the same function, with optimiser steps of the usual size. A
    layer without a bias cannot hold the mean; there the mean is 0 and std the root mean square of the targets.
    """

    def __init__(self, layer: OutputLayer, mean: float, std: float) -> None:
        if layer.bias is None:
            mean, std = 0.0, math.hypot(mean, std)
        self.mean, self.std, self.standardised = mean, std, False

    def __call__(self, layer: OutputLayer, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if output.dtype in HALVES:
            x, weight = args[0].float(), layer.weight.float()
            bias = None if layer.bias is None else layer.bias.float()
            with torch.autocast(output.device.type, enabled=False):
                if isinstance(layer, nn.Conv2d):
                    output = F.conv2d(x, weight, bias)
                else:
                    output = x @ weight.T if bias is None else x @ weight.T + bias
        return output * self.std + self.mean if self.standardised else output

    @torch.no_grad()
    def to_units(self, layer: OutputLayer) -> None:
        """Convert parameters for standardised targets into those in the units of the data."""
        layer.weight.mul_(self.std)
        if layer.bias is not None:
            layer.bias.mul_(self.std).add_(self.mean)
        self.standardised = False

    @torch.no_grad()
    def to_standard(self, layer: OutputLayer) -> None:
        """Convert parameters in the units of the data into those for standardised targets."""
        layer.weight.div_(self.std)
        if layer.bias is not None:
            layer.bias.sub_(self.mean).div_(self.std)
        self.standardised = True


def scale_targets(loaded: LoadedModel, labels: Labels | None) -> None:
    """Attach a `TargetScale` to a model's regression layers; new layers start at the targets' mean and spread.

    Nothing changes if the scale of the targets is unknown, or no output layer is recognised.
    """
    if labels is None or labels.mean is None or labels.std is None:
        return
    new, old = _output_layers(loaded, len(labels.names))
    for layer in new or old:
        scale = TargetScale(layer, labels.mean, labels.std)
        layer.register_forward_hook(scale)
        if new:
            if layer.weight.dtype in HALVES:
                layer.float()
            scale.to_units(layer)


def _output_layers(loaded: LoadedModel, outputs: int) -> tuple[list[OutputLayer], list[OutputLayer]]:
    """Return the last layer with `outputs` outputs of each new module; in a second list, the last one elsewhere."""
    prefix = f"{getattr(loaded.module, 'base_model_prefix', '') or '-'}."
    layers = {name: x for name, x in loaded.module.named_modules() if _outputs_of(x) == outputs}
    new = [[x for name, x in layers.items() if f"{name}.".startswith(f"{path}.")] for path in loaded.new_modules]
    old = [x for name, x in layers.items() if not name.startswith(prefix)]
    return [matches[-1] for matches in new if matches], old[-1:]


def _outputs_of(module: nn.Module) -> int | None:
    """Return the number of outputs of a linear layer or a pointwise convolution; None for other modules."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d) and (*module.kernel_size, *module.stride, module.groups) == (1, 1, 1, 1, 1):
        return module.out_channels if module.padding in (0, (0, 0), "valid") else None
    return None


class StandardisedTargets:
    """The layers of a model that have a `TargetScale`, standardised until `restore`."""

    def __init__(self, module: nn.Module) -> None:
        self._scales = [
            (layer, hook)
            for layer in module.modules()
            if isinstance(layer, OutputLayer)
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

    def advice(self, labels: Labels | None) -> str:
        """Return advice if the target numbers should be changed in the data; "" otherwise."""
        if labels is None or labels.mean is None or labels.std is None:
            return ""
        mean, size = number(labels.mean), math.hypot(labels.mean, labels.std)
        numbers = f"the numbers to be learnt are {mean} on average with a standard deviation of {number(labels.std)}"
        if labels.std < FEW_ROUNDINGS * torch.finfo(torch.float32).eps * abs(labels.mean):
            return f"{numbers}, and float32 has too few digits for that: subtract {mean} from them in the data"
        if not self._scales and size >= FAR:
            return (
                f"{numbers}, and it is not known which layer of this model gives them, so that nothing standardises "
                f"them: divide them in the data, by {10 ** int(math.log10(size)):,} say"
            )
        biases = [layer.bias.detach() for layer, _ in self._scales if layer.bias is not None]
        # What is divided over processes has to be put together.
        begins = max((float(getattr(x, "full_tensor", lambda x=x: x)().abs().max()) for x in biases), default=0.0)
        if begins >= FAR:
            return (
                f"{numbers}, and this model's output layer begins {number(begins)} standard deviations from that, as "
                "one that learnt other numbers, or these in another unit: start from one that learnt such numbers, or "
                "convert the data"
            )
        without_bias = any(layer.bias is None for layer, _ in self._scales)
        if without_bias and abs(labels.mean) >= FAR * labels.std:
            return (
                f"{numbers}, and this model's output layer has no bias that could hold that: subtract {mean} from them "
                "in the data, or choose a model whose output layer has one (BERT and other encoders)"
            )
        return ""

    @torch.no_grad()
    def restore(self) -> None:
        """Convert the layers back into the units of the data; layers that never trained are restored to the bit."""
        for layer, scale in self._scales:
            scale.to_units(layer)
        for parameter, before in self._frozen:
            if not parameter.requires_grad:
                parameter.copy_(before)
