"""Mixout: dropout towards the pre-trained weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from ftengine import api
from ftengine.api import LoadedModel, Regularizer, Task
from ftengine.errors import RecipeError
from ftengine_builtins.regularizers.pretrained import pretrained_trained
from ftengine_builtins.regularizers.randomness import NOISY
from ftengine_builtins.strategies.targets import BYPASSING, output_head

KINDS = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ADVICE = "Remove it (lora and adapter have their own dropout), or use strategy full."


class Mixout(Regularizer):
    """Swap the weights of random neurons for the pre-trained ones in every pass of training (mixout, Lee et al. 2020).

    With a mask m, 1 with probability p, a weight w that started as u becomes (m u + (1 - m) w - p u) / (1 - p), whose
    mean is w (arXiv:1909.11299, §3). As in the paper, m is one draw for all weights that go out from a neuron of a
    layer's input (a channel, of convolutions). It acts on the matrices of linear and convolutional layers that came
    with the model and train; embeddings, a language model's output head, biases, norms and fresh heads train as ever.
    A copy of those matrices is kept in memory. The paper takes p from 0.7 to 0.9 for BERT, in place of dropout.
    """

    name = "mixout"
    paper = (
        "Lee et al. 2020, Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models, "
        "arXiv:1909.11299"
    )

    class Config(api.Config):
        p: float = Field(0.7, gt=0, lt=1, description="share of neurons that use their pre-trained weights in a pass")

    _handles: Sequence[RemovableHandle] = ()
    _start: Mapping[nn.Module, Tensor] = MappingProxyType({})
    _trained: dict[nn.Module, nn.Parameter]
    """Trained weights of layers that are computing."""

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        layers = self._layers(loaded)
        if not layers:
            raise RecipeError(
                f"regularizer mixout finds no linear or convolutional layer in {type(loaded.module).__name__} that "
                f"came with the model and trains. {ADVICE}"
            )
        self._start, self._trained = {layer: layer.weight.detach().clone() for layer in layers}, {}
        self._handles = [layer.register_forward_pre_hook(self._mix) for layer in layers]
        self._handles += [layer.register_forward_hook(self._put_back, always_call=True) for layer in layers]
        NOISY.update(layers)

    def detach(self, loaded: LoadedModel) -> None:
        for handle in self._handles:
            handle.remove()
        NOISY.difference_update(self._start)
        self._handles, self._start = (), {}

    def _layers(self, loaded: LoadedModel) -> list[Any]:
        module: Any = loaded.module
        trained = {id(p) for p in pretrained_trained(loaded, self.name, ADVICE).values()}
        head = output_head(module)
        closed = {id(part) for outer in module.modules() if isinstance(outer, BYPASSING) for part in outer.modules()}
        return [
            layer
            for layer in module.modules()
            if isinstance(layer, KINDS)
            and layer is not head
            and id(layer) not in closed
            and id(layer.weight) in trained
        ]

    def _mix(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        # The mixed weight takes the parameter's place while the layer computes, so that names stay as they are.
        weight = layer._parameters["weight"]
        if layer.training and weight is not None:
            self._trained[layer] = weight
            keeps = kept_neurons(layer, self.config.p)
            layer._parameters["weight"] = mixed(weight, self._start[layer], keeps, self.config.p)

    def _put_back(self, layer: nn.Module, *_: Any) -> None:
        if layer in self._trained:
            layer._parameters["weight"] = self._trained.pop(layer)


def kept_neurons(layer: Any, p: float) -> Tensor:
    """Draw which neurons of a layer's input keep their trained weights: 1 with probability 1 - p, else 0.

    Returns:
        In the weight's dtype and of its number of dimensions: (inputs, 1) of Conv1D, (1, inputs) of Linear,
        (1, channels, 1, …) of a convolution, and (outputs, channels of a group, 1, …) where that has groups.
    """
    weight = layer.weight
    if isinstance(layer, Conv1D):  # (inputs, outputs)
        return weight.new_empty(len(weight), 1).bernoulli_(1 - p)
    groups = getattr(layer, "groups", 1)
    outputs, inputs, *kernel = weight.shape
    keeps = weight.new_empty(groups, inputs).bernoulli_(1 - p)
    if groups > 1:
        keeps = keeps.repeat_interleave(outputs // groups, dim=0)
    return keeps.reshape(*keeps.shape, *(1 for _ in kernel))


def mixed(weight: Tensor, start: Tensor, keeps: Tensor, p: float) -> Tensor:
    """Return (m u + (1 - m) w - p u) / (1 - p), in the weight's dtype, of w, u as w started, and keeps = 1 - m."""
    return start + keeps * (weight - start) / (1 - p)
