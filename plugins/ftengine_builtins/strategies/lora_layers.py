"""LoRA on one layer: y = frozen(x) + scale · (dropout(x) Aᵀ) Bᵀ (Hu et al. 2021, arXiv:2106.09685).

A layer is adapted where it stands: it changes its class to a subclass of its own and gains two
parameters, as torch.nn.utils.parametrize does. Base weights keep their names, whatever reads
`layer.weight` still finds it, and taking LoRA away leaves the very module that was there before.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ftengine.ops import lowrank_add, lowrank_linear, lowrank_merge_


class LoraLayer(nn.Module):
    """Any frozen layer with a low-rank update on its output; its weights may be packed in any way.

    All names begin with `lora`, because the layer below has names of its own.

    A PiSSA or OLoRA layer also holds what it started from, A₀ and -B₀. PEFT takes scale · B₀A₀ out of the base
    weight; here the base stays as it is, and the constant pair is one more low-rank update. So a base may be shared,
    fingerprinted and kept in bfloat16, and [A, A₀], [B, -B₀] is what a plain LoRA on the original base needs.
    """

    lora_base: ClassVar[type[nn.Module]]
    lora_a: nn.Parameter  # (r, in)
    lora_b: nn.Parameter  # (out, r)
    lora_a0: Tensor | None  # (r, in), constant
    lora_b0: Tensor | None  # (out, r), constant; -B₀
    lora_magnitude: nn.Parameter | None  # (out,), of DoRA
    lora_scale: float
    lora_dropout: float

    @staticmethod
    def lora_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of A and B for a layer of this kind."""
        n_in, n_out = (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
        return (rank, n_in), (n_out, rank)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = super().forward(x, *args, **kwargs)
        return lowrank_add(y, x, self.lora_a, self.lora_b, self.lora_scale, self.lora_p())

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B of the whole update, with what the layer started from subtracted."""
        if self.lora_a0 is None:
            return self.lora_a, self.lora_b
        return torch.cat([self.lora_a, self.lora_a0]), torch.cat([self.lora_b, self.lora_b0], dim=1)

    def lora_p(self) -> float:
        """Return the probability of dropout as it is now."""
        return self.lora_dropout if self.training else 0.0


class DenseLora(LoraLayer):
    """A layer whose weight is plain numbers, so that an update folds into it and has norms.

    Subclasses say how the frozen map and the update are applied apart; DoRA is made of those.
    """

    inputs: ClassVar[tuple[int, ...]]  # dimensions of the weight other than its output's

    def frozen(self, x: Tensor, bias: Tensor | None, apart: bool) -> Tensor:
        """Apply the frozen map; with `apart`, less the constant update that the layer started from."""
        raise NotImplementedError

    def add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
        """Return y + scale · B A dropout(x)."""
        raise NotImplementedError

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return two matrices whose product, times scale, is added to the weight as it is stored."""
        raise NotImplementedError

    def updated(self, weight: Tensor, times: float = 1.0) -> Tensor:
        """Return a weight with so many times the update added, in float32 (float64 for float64)."""
        dtype = torch.promote_types(weight.dtype, self.lora_a.dtype)
        wide, left, right = (tensor.to(dtype) for tensor in (weight.flatten(1), *self.pair()))
        with without_autocast(weight.device):
            return torch.addmm(wide, left, right, alpha=times * self.lora_scale).view_as(weight)

    def fold(self) -> None:
        """Add the update to the base weight in place."""
        self.shift(1.0)

    def unfold(self) -> None:
        """Take the update out of the base weight again, up to rounding."""
        self.shift(-1.0)

    @torch.no_grad()
    def shift(self, times: float) -> None:
        """Add so many times the update to the base weight in place, rounded once."""
        if self.weight.dim() > 2:
            self.weight.copy_(self.updated(self.weight, times))
            return
        left, right = self.pair()
        lowrank_merge_(self.weight, right.contiguous(), left.contiguous(), times * self.lora_scale)


class LoraLinear(DenseLora):
    """A dense linear layer: base and update in one operation."""

    inputs = (1,)

    def forward(self, x: Tensor) -> Tensor:
        p = self.lora_p()
        if self.lora_a0 is not None and p > 0:  # what the layer started from is part of the base: no dropout there
            return self.add(self.frozen(x, self.bias, apart=True), x, self.lora_a, self.lora_b, p)
        return lowrank_linear(x, self.matrix(), self.bias, *self.lora_factors(), self.lora_scale, p)

    def matrix(self) -> Tensor:
        """Return the weight as (out, in)."""
        return self.weight

    def frozen(self, x: Tensor, bias: Tensor | None, apart: bool) -> Tensor:
        if apart:
            return lowrank_linear(x, self.matrix(), bias, self.lora_a0, self.lora_b0, self.lora_scale)
        return F.linear(x, self.matrix(), bias)

    def add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
        return lowrank_add(y, x, a, b, self.lora_scale, p)

    def pair(self) -> tuple[Tensor, Tensor]:
        a, b = self.lora_factors()
        return b, a


class LoraConv1D(LoraLinear):
    """GPT-2's linear layer, which stores its weight as (in, out)."""

    inputs = (0,)

    def matrix(self) -> Tensor:
        return self.weight.t()

    def pair(self) -> tuple[Tensor, Tensor]:
        # (B A)ᵀ = Aᵀ Bᵀ: transposing the small factors leaves the large weight where it is.
        a, b = self.lora_factors()
        return a.t(), b.t()


class LoraConv2d(DenseLora):
    """A convolution: A has its kernel, stride, padding and dilation, B is 1×1."""

    inputs = (1, 2, 3)

    @staticmethod
    def lora_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.frozen(x, self.bias, False), x, self.lora_a, self.lora_b, self.lora_p())

    def frozen(self, x: Tensor, bias: Tensor | None, apart: bool) -> Tensor:
        return self._conv_forward(x, self.weight, bias)

    def add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
        s = self._conv_forward(F.dropout(x, p), a.to(x.dtype), None)
        return y + self.lora_scale * F.conv2d(s, b.to(s.dtype))

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.lora_b.flatten(1), self.lora_a.flatten(1)


class LoraEmbedding(DenseLora):
    """A table of vectors: row i gains scale · B A[:, i], with A (r, rows) and B (dim, r); there is no dropout."""

    inputs = (0,)

    @staticmethod
    def lora_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, layer.num_embeddings), (layer.embedding_dim, rank)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.frozen(x, None, False), x, self.lora_a, self.lora_b, 0.0)

    def frozen(self, x: Tensor, bias: Tensor | None, apart: bool) -> Tensor:
        return self.lora_base.forward(self, x)

    def add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
        s = F.embedding(x, a.t(), self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)
        # Some models' tables multiply what they look up by a constant, so the update is multiplied as well.
        return (y + self.lora_scale * getattr(self, "embed_scale", 1.0) * (s @ b.t())).to(y.dtype)

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.lora_a.t(), self.lora_b.t()

    def lora_p(self) -> float:
        return 0.0  # an index cannot be dropped in part


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Compute in the tensors' own dtypes, whatever autocast says."""
    known = torch.amp.is_autocast_available(device.type)  # the meta device has no autocast
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
