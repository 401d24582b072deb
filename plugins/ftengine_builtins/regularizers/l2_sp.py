"""L2-SP: a penalty on the distance to the pre-trained weights, in place of the distance to zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ftengine import api
from ftengine.api import Batch, LoadedModel, Regularizer, RegularizerTraits, Task
from ftengine.model import trainable
from ftengine_builtins.regularizers.pretrained import pretrained_trained

ADVICE = "Remove it, or use train.weight_decay for new weights; strategy full trains the base."


class L2SP(Regularizer):
    """Pull weights back to the pre-trained ones, not to zero (L2-SP, Li et al. 2018).

    alpha/2 ‖w - w⁰‖² over pre-trained weights that train, plus beta/2 ‖w‖² over new ones (arXiv:1802.01483, eq. 2), is
    added to the loss. It takes the place of train.weight_decay, which pulls everything towards zero and has to be 0.
    A copy of the pre-trained weights is kept in memory.
    """

    name = "l2-sp"
    traits = RegularizerTraits(replaces_weight_decay=True)
    paper = (
        "Li et al. 2018, Explicit Inductive Bias for Transfer Learning with Convolutional Networks, arXiv:1802.01483"
    )

    class Config(api.Config):
        alpha: float = Field(0.1, ge=0, description="pull of pre-trained weights towards where they started")
        beta: float = Field(0.01, ge=0, description="pull of new weights (a fresh head) towards zero")

    _old: Sequence[nn.Parameter] = ()
    _new: Sequence[nn.Parameter] = ()
    _start: Sequence[Tensor] = ()
    """Copies of the pre-trained weights."""

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        old = pretrained_trained(loaded, self.name, ADVICE)
        self._old, self._start = list(old.values()), [parameter.detach().clone() for parameter in old.values()]
        self._new = [p for name, p in trainable(loaded.module).items() if name not in old]

    def penalty(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor:
        old = _HalfSquares.apply(self.config.alpha, self._start, *self._old)
        if not self._new:
            return old
        return old + _HalfSquares.apply(self.config.beta, [None] * len(self._new), *self._new)

    def detach(self, loaded: LoadedModel) -> None:
        self._start = self._old = self._new = ()


class _HalfSquares(torch.autograd.Function):
    """factor/2 Σ ‖w - w⁰‖², without keeping the differences for the gradient factor (w - w⁰)."""

    @staticmethod
    def forward(ctx: Any, factor: float, origins: Sequence[Tensor | None], *weights: Tensor) -> Tensor:
        ctx.factor, ctx.origins = factor, origins
        ctx.save_for_backward(*weights)
        squares = [_moved(w, w0).square().sum() for w, w0 in zip(weights, origins, strict=True)]
        return 0.5 * factor * torch.stack([s.to(squares[0].device) for s in squares]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.needs_input_grad[2:], ctx.saved_tensors, ctx.origins, strict=True)
        slope = upstream * ctx.factor
        return None, None, *(_moved(w, w0) * slope.to(w.device, w.dtype) if want else None for want, w, w0 in pairs)


def _moved(weight: Tensor, origin: Tensor | None) -> Tensor:
    return weight if origin is None else weight - origin
