"""EMA: an exponential moving average of the weights is validated and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from pydantic import Field
from torch import Tensor, nn

from ftengine import api
from ftengine.api import LoadedModel, Regularizer, Task
from ftengine.model import copy_into, state_tensors, widen


class Ema(Regularizer):
    """Keep an exponential moving average of the weights (EMA; Polyak & Juditsky 1992, Morales-Brotons et al. 2024).

    After step t the average becomes d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)), so that the first weights
    leave no trace (their share is below 10⁻⁴ after ten steps). The average is what is validated, kept and saved;
    training goes on with the weights themselves. It is kept in fp32, running statistics included.
    """

    name = "ema"
    paper = "Morales-Brotons et al. 2024, Exponential Moving Average of Weights in Deep Learning, arXiv:2411.18704"

    class Config(api.Config):
        decay: float = Field(0.99, gt=0, lt=1, description="decay of the moving average, once warmed up")

    _average: Mapping[str, Tensor] = MappingProxyType({})

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        copies = {name: tensor.detach().clone() for name, tensor in state_tensors(loaded.module).items()}
        self._average = {name: widen(x) if x.is_floating_point() else x for name, x in copies.items()}

    @torch.no_grad()
    def on_step_end(self, model: nn.Module, step: int) -> None:
        decay = min(self.config.decay, (1 + step) / (10 + step))
        for name, tensor in state_tensors(model).items():
            average = self._average[name]
            if tensor.is_floating_point():
                average.lerp_(tensor.to(average.dtype), 1 - decay)
            else:  # the number of batches in running statistics
                average.copy_(tensor)

    @contextmanager
    def averaged_weights(self, model: nn.Module) -> Iterator[None]:
        tensors = state_tensors(model)
        trained = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        copy_into(tensors, self._average, "the average of the weights")
        try:
            yield
        finally:
            copy_into(tensors, trained, "the weights")

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._average)

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        copy_into(self._average, tensors, "the average of the weights in the checkpoint")

    def detach(self, loaded: LoadedModel) -> None:
        self._average = {}
