"""LoRA and DoRA on frozen layers of every kind that transformers has.

A layer is adapted in place: its class changes to a subclass and it gains two parameters, as in
torch.nn.utils.parametrize. Base weights keep their names, code that reads `layer.weight` still finds it, and removing
LoRA restores the original module.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ftengine.model import widen
from ftengine.ops import lowrank_add, lowrank_linear, lowrank_merge_, without_autocast

INITIALISATIONS = "kaiming, gaussian, pissa, pissa_niter_N (a fast SVD with N iterations, e.g. pissa_niter_4) or olora"
INIT_PATTERN = re.compile(r"kaiming|gaussian|olora|pissa(_niter_(?P<iterations>[1-9]\d*))?")


class LoRALayer(nn.Module):
    """Any frozen layer f with a low-rank update on its output; its weights may be packed in any way.

    y = f(x) + scale · (dropout(x) Aᵀ) Bᵀ      (Hu et al. 2021, arXiv:2106.09685, §4.1)

    x is (..., in), y (..., out), A (r, in), B (out, r); scale is alpha / r. A and B are float32 whatever f holds,
    because bfloat16 swallows small updates.

    PiSSA and OLoRA start from a part of the base weight, B₀A₀, and train beside the residual W - scale · B₀A₀. Here
    W stays as it is, so that a base may be shared, fingerprinted and kept in bfloat16, and A₀ and -B₀ are one more
    low-rank update, a constant one. [A; A₀] and [B, -B₀] are a plain LoRA on the original base.

    All names begin with `lora`, because the layer below has names of its own.
    """

    lora_base: ClassVar[type[nn.Module]]
    lora_a: nn.Parameter  # (r, in)
    lora_b: nn.Parameter  # (out, r)
    lora_a0: Tensor | None  # (r, in), A₀
    lora_b0: Tensor | None  # (out, r), -B₀
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
        return lowrank_add(y, x, self.lora_a, self.lora_b, self.lora_scale, self.lora_p)

    @property
    def lora_p(self) -> float:
        """Probability of dropout as it is now."""
        return self.lora_dropout if self.training else 0.0

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """Return A (r, in) and B (out, r) of the update of W; of rank 2r if the layer started from W."""
        if self.lora_a0 is None:
            return self.lora_a, self.lora_b
        return torch.cat([self.lora_a, self.lora_a0]), torch.cat([self.lora_b, self.lora_b0], dim=1)


class DenseLoRA(LoRALayer):
    """A layer with a plain weight W, so that W + scale · BA can be computed, for merging and DoRA.

    Kinds of layer differ in how the frozen map and the update are applied, and in the layout of the weight.
    """

    lora_transposed: ClassVar[bool] = False
    """Whether the weight is stored as (in, out), not (out, in, …)."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.lora_base_forward(x, getattr(self, "bias", None))
        return self.lora_add(y, x, self.lora_a, self.lora_b, self.lora_p)

    def lora_base_forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + bias, or (W - scale · B₀A₀) x + bias where `lora_on_residual`."""
        raise NotImplementedError

    def lora_add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
        """Return y + scale · B A dropout(x)."""
        return lowrank_add(y, x, a, b, self.lora_scale, p)

    def lora_delta_factors(self) -> tuple[Tensor, Tensor]:
        """Return two matrices whose product, times scale, is the change of the stored weight: (N, rest)."""
        a, b = (factor.flatten(1) for factor in self.lora_factors())
        # (B A)ᵀ = Aᵀ Bᵀ: transposing the small factors leaves the large weight where it is.
        return (a.t(), b.t()) if self.lora_transposed else (b, a)

    @property
    def lora_on_residual(self) -> bool:
        """Whether B₀A₀ is subtracted from the base's output: needed with dropout, which must not apply to it."""
        return self.lora_a0 is not None and self.lora_p > 0

    def lora_merged_weight(self) -> Tensor:
        """Return W + scale · BA in float32 (float64 for a float64 weight), in the weight's shape."""
        dtype = torch.promote_types(self.weight.dtype, self.lora_a.dtype)
        weight, left, right = (t.to(dtype) for t in (self.weight.flatten(1), *self.lora_delta_factors()))
        with without_autocast(weight.device.type):
            return torch.addmm(weight, left, right, alpha=self.lora_scale).view_as(self.weight)

    @torch.no_grad()
    def lora_merge(self) -> None:
        """Add the update to the base weight in place, rounded once."""
        if self.weight.dim() > 2:
            self.weight.copy_(self.lora_merged_weight())
            return
        left, right = self.lora_delta_factors()
        lowrank_merge_(self.weight, right.contiguous(), left.contiguous(), self.lora_scale)


class LoRALinear(DenseLoRA):
    """A linear layer, base and update in one operation: y = x Wᵀ + bias + scale · (dropout(x) Aᵀ) Bᵀ, W (out, in)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.lora_on_residual:
            return super().forward(x)
        return lowrank_linear(x, self.lora_matrix, self.bias, *self.lora_factors(), self.lora_scale, self.lora_p)

    @property
    def lora_matrix(self) -> Tensor:
        """The weight as (out, in)."""
        return self.weight.t() if self.lora_transposed else self.weight

    def lora_base_forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.lora_on_residual:
            return lowrank_linear(x, self.lora_matrix, bias, self.lora_a0, self.lora_b0, self.lora_scale)
        return F.linear(x, self.lora_matrix, bias)


class LoRAConv1D(LoRALinear):
    """GPT-2's linear layer, which stores its weight as (in, out)."""

    lora_transposed = True


class LoRAConv2d(DenseLoRA):
    """A convolution: A (r, in, height, width) has its kernel, stride and padding; B (out, r, 1, 1) is 1×1."""

    @staticmethod
    def lora_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)

    def lora_base_forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, self.weight, bias)

    def lora_add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
        s = self._conv_forward(F.dropout(x, p), a.to(x.dtype), None)
        return y + self.lora_scale * F.conv2d(s, b.to(s.dtype))


class LoRAEmbedding(DenseLoRA):
    """A table of vectors: row i gains scale · B A[:, i], with A (r, rows) and B (dim, r), without dropout."""

    lora_transposed = True

    @staticmethod
    def lora_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, layer.num_embeddings), (layer.embedding_dim, rank)

    @property
    def lora_p(self) -> float:
        return 0.0  # an index cannot be dropped in part

    def lora_base_forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.lora_base.forward(self, x)

    def lora_add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
        s = F.embedding(x, a.t(), self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)
        # Some models' tables multiply what they look up by a constant, so the update is multiplied as well.
        return (y + self.lora_scale * getattr(self, "embed_scale", 1.0) * (s @ b.t())).to(y.dtype)


class DoRA(DenseLoRA):
    """Mixed into a dense LoRA layer: LoRA tunes a weight's direction, a vector m its magnitude.

    W' = m · (W + scale · BA) / ‖W + scale · BA‖      (Liu et al. 2024, arXiv:2402.09353)

    with one norm and one m for each output. The norm is a constant to the gradient (§4.3). With u = m / ‖…‖, and
    x̂ = dropout(x) on both terms that train, as PEFT computes it:

    y = W x + bias + (u - 1) · W x̂ + scale · u · B A x̂
    """

    def forward(self, x: Tensor) -> Tensor:
        p, bias = self.lora_p, getattr(self, "bias", None)
        a, b = (self.lora_a, self.lora_b) if self.lora_on_residual else self.lora_factors()
        u = self.lora_magnitude / self.lora_weight_norm()
        y = self.lora_base_forward(x, bias)
        if p > 0:
            x = F.dropout(x, p)
            z = self.lora_base_forward(x, None)
        else:
            z = y if bias is None else y - bias.view_as(u)
        y = (y + (u - 1) * z).to(y.dtype)
        return self.lora_add(y, x, a, b * u.reshape(-1, *[1] * (b.dim() - 1)), 0.0)

    @torch.no_grad()
    def lora_weight_norm(self) -> Tensor:
        """Return ‖W + scale · BA‖ of each output in PEFT's shape: (out,), of a convolution (1, out, 1, 1)."""
        norm = self.lora_norm(self.lora_merged_weight())
        return norm.view(1, -1, 1, 1) if norm.dim() == 4 else norm.flatten()

    @torch.no_grad()
    def lora_merge(self) -> None:
        """Replace the base weight by W' in place."""
        merged = self.lora_merged_weight()
        norm = self.lora_norm(merged)
        self.weight.copy_(merged * (self.lora_magnitude.view_as(norm) / norm))

    def lora_norm(self, weight: Tensor) -> Tensor:
        """Return the norm of each output of W in the stored layout, with input dimensions of 1."""
        inputs = (0,) if self.lora_transposed else tuple(range(1, weight.dim()))
        return torch.linalg.vector_norm(weight, dim=inputs, keepdim=True)


DENSE = {
    nn.Linear.forward: LoRALinear,
    Conv1D.forward: LoRAConv1D,
    nn.Conv2d.forward: LoRAConv2d,
    nn.Embedding.forward: LoRAEmbedding,
}
"""Layers whose weight is used as it stands; a subclass with a forward of its own may do anything with it."""


def lora_class(layer: nn.Module) -> type[LoRALayer] | None:
    if dense := DENSE.get(type(layer).forward):
        return dense
    if isinstance(layer, nn.Embedding):
        return LoRAEmbedding if hasattr(layer, "embed_scale") else None  # Bart's, Gemma's; others look up unknown rows
    if isinstance(layer, (nn.Linear, Conv1D)):
        return LoRALayer  # a forward of its own (quantised, scaled, …) is kept
    n_in, n_out = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    is_leaf = next(layer.children(), None) is None
    return LoRALayer if is_leaf and isinstance(n_in, int) and isinstance(n_out, int) else None


def is_linear(layer: nn.Module) -> bool:
    """Return whether a layer is a Linear, a Conv1D or a quantised linear layer."""
    cls = lora_class(layer)
    return cls is LoRALayer or (cls is not None and issubclass(cls, LoRALinear))


def lora_layers(module: nn.Module) -> dict[str, LoRALayer]:
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, LoRALayer)}


def add_lora(layer: nn.Module, rank: int, scale: float, dropout: float, init: str, dora: bool) -> None:
    """Turn a layer that `lora_class` knows into a LoRA layer with the same output up to rounding.

    `dropout` is the probability that an input of the update is dropped while training, `init` one of `INITIALISATIONS`.
    """
    cls = lora_class(layer)
    device = next((t.device for t in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
    # Drawn on the CPU, so that one seed gives one A on every kind of device.
    drawn = "meta" if device.type == "meta" else "cpu"
    a, b = (torch.zeros(shape, dtype=torch.float32, device=drawn) for shape in cls.lora_shapes(layer, rank))
    if cls is LoRAEmbedding:
        nn.init.normal_(b)  # as in the reference implementation: here A is zero, so that rare rows start unchanged
    elif init == "gaussian":
        nn.init.normal_(a, std=1 / rank)
    else:
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    layer.__class__ = _subclass(type(layer), cls, dora)
    layer.lora_a, layer.lora_b = nn.Parameter(a.to(device)), nn.Parameter(b.to(device))
    layer.lora_scale, layer.lora_dropout = scale, dropout
    layer.register_buffer("lora_a0", None)
    layer.register_buffer("lora_b0", None)
    layer.register_parameter("lora_magnitude", None)
    if starts_from_weight(init):
        _start_from_weight(layer, init)
    if dora:
        layer.lora_magnitude = nn.Parameter(layer.lora_weight_norm().float())


def remove_lora(layer: LoRALayer) -> None:
    """Undo `add_lora`."""
    for name in [*layer._parameters, *layer._buffers, *vars(layer)]:
        if name.startswith("lora_"):
            delattr(layer, name)
    layer.__class__ = layer.lora_base


def starts_from_weight(init: str) -> bool:
    """Return whether an initialisation computes A and B from the base weight."""
    return init not in ("kaiming", "gaussian")


def pissa(weight: Tensor, rank: int, scale: float, iterations: int | None = None) -> tuple[Tensor, Tensor]:
    """Return A and B whose update, scale · BA, is the best rank-r part of W (Meng et al. 2024, arXiv:2404.02948).

    W is (N, K); `iterations` are those of a randomised SVD (Halko et al. 2011, arXiv:0909.4061), None: the exact one.
    """
    if iterations is None:
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    else:
        u, s, v = torch.svd_lowrank(weight, rank, niter=iterations)
        vt = v.t()
    root = (s / scale).sqrt()
    return root[:, None] * vt, u * root


@torch.no_grad()
def _start_from_weight(layer: LoRALinear, init: str) -> None:
    if not layer.lora_a.is_meta:
        weight, rank = widen(layer.lora_matrix), len(layer.lora_a)
        if init == "olora":  # W = QR (Büyükakyüz 2024, arXiv:2406.01775); the scale changes nothing, as in PEFT
            q, r = torch.linalg.qr(weight)
            a, b = r[:rank], q[:, :rank]
        else:
            iterations = INIT_PATTERN.fullmatch(init)["iterations"]
            a, b = pissa(weight, rank, layer.lora_scale, iterations and int(iterations))
        layer.lora_a.copy_(a)
        layer.lora_b.copy_(b)
    layer.lora_a0, layer.lora_b0 = layer.lora_a.detach().clone(), -layer.lora_b.detach()


@functools.cache
def _subclass(base: type[nn.Module], cls: type[LoRALayer], dora: bool) -> type[LoRALayer]:
    bases = (DoRA, cls, base) if dora else (cls, base)
    return type(f"{'DoRA' if dora else 'LoRA'}{base.__name__}", bases, {"lora_base": base})
