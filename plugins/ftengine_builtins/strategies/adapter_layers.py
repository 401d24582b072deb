"""A bottleneck beside one sublayer: h ← h + scaling · up(act(down(x))) (Houlsby et al. 2019, arXiv:1902.00751).

Every placement is this formula with another x: h itself, the normalised sum of h and the residual, or the residual. A
layer is adapted in place: its class changes to a subclass and it gains a child, so that base weights keep their names.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ftengine.errors import NoMatch

Reads = Literal["output", "sum", "residual"]
"""What a bottleneck reads: h; norm(residual + h); or the residual."""

Init = Literal["identity", "bert", "houlsby"]


class Bottleneck(nn.Module):
    """f(x) = scaling · dropout(up(act(down(x)))), in the dtype of its own weights.

    Args:
        width: channels of f(x), and of x unless `reads` differs.
        size: channels between the two maps.
        non_linearity: transformers' name of the activation, or "leakyrelu".
        dropout: probability that an element of f is dropped while training.
        channels_first: x is (batch, width, ...), with any number of dimensions after it, and the maps act as 1×1
            convolutions; else (..., width).
    """

    def __init__(
        self, width: int, size: int, non_linearity: str, scaling: float, dropout: float, channels_first=False, reads=0
    ) -> None:
        from transformers.activations import get_activation  # seconds of importing, which lists do without

        super().__init__()
        self.down = nn.Linear(reads or width, size)
        self.up = nn.Linear(size, width)
        self.activation = nn.LeakyReLU() if non_linearity == "leakyrelu" else get_activation(non_linearity)
        self.dropout = nn.Dropout(dropout)
        self.scaling, self.channels_first = scaling, channels_first

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.down.weight.dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            x = x.to(dtype)
        self._check(x)
        # A 1×1 convolution is a linear map of the channels, in any number of dimensions.
        x = x.movedim(1, -1) if self.channels_first else x
        up = self.dropout(self.up(self.activation(self.down(x))) * self.scaling)
        return up.movedim(-1, 1) if self.channels_first else up

    def _check(self, x: Tensor) -> None:
        width, at = self.down.in_features, 1 if self.channels_first else -1
        if x.ndim < 2 or x.shape[at] != width:
            raise NoMatch(
                f"an adapter of width {width} meets a tensor of shape {tuple(x.shape)}; it takes "
                f"{'(batch, width, ...)' if self.channels_first else '(..., width)'}, as the last layer of the place "
                "suggests. Name the module in there whose output has that shape in strategy.places."
            )


class Residual:
    """Holds the residual between the layer where it is observed and the adapter; empty before and after."""

    value: Tensor | None = None

    def take(self) -> Tensor:
        """Return the residual and drop the reference, so that no activation outlives the forward pass."""
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError("an adapter ran before the layer whose input it reads; name other places.")
        return value


class AdaptedLayer(nn.Module):
    """A layer with a bottleneck added to its (first) output h."""

    bottleneck: Bottleneck
    bottleneck_reads: Reads
    bottleneck_residual: Residual | None  # None: the layer's own input is the residual
    bottleneck_norm: tuple[nn.Module, ...]  # in a tuple, so that it stays the child of its own parent alone

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        h = output if isinstance(output, Tensor) else output[0]
        x = h if self.bottleneck_reads == "output" else self._beside(h, args, kwargs)
        h = h + self.bottleneck(x).to(h.dtype)
        return h if isinstance(output, Tensor) else (h, *output[1:])

    def _beside(self, h: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        residual = self.bottleneck_residual.take() if self.bottleneck_residual else _first(args, kwargs)
        if self.bottleneck_reads == "residual":
            return on_grid(residual, h) if self.bottleneck.channels_first else residual
        x = h + residual
        for norm in self.bottleneck_norm:
            x = norm(x)
        return x


def on_grid(x: Tensor, h: Tensor) -> Tensor:
    """Return every s-th point of x (batch, channels, ...), as a 1×1 convolution of stride s reads it, to fit h.

    Raises NoMatch if no stride gives h's grid.
    """
    strides = [-(-n // m) for n, m in zip(x.shape[2:], h.shape[2:], strict=False)]
    read = x[(..., *(slice(None, None, stride) for stride in strides))]
    if read.shape[2:] != h.shape[2:]:
        raise NoMatch(
            f"strategy.placement parallel: a place turns {tuple(x.shape)} into {tuple(h.shape)}, and no stride of a "
            "1×1 convolution does. Use pfeiffer or houlsby, which read the output."
        )
    return read


class ObservedLayer(nn.Module):
    """A layer whose first input is the residual that an adapter reads."""

    observed_residual: Residual

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.observed_residual.value = _first(args, kwargs)
        return super().forward(*args, **kwargs)


def insert(
    layer: nn.Module, bottleneck: Bottleneck, reads: Reads, observed: nn.Module | None, norm: nn.Module | None
) -> None:
    """Add a bottleneck f to a layer's (first) output h, to which the model adds a residual and then may apply a `norm`.

    `observed` is the layer whose first input is the residual; None if that is `layer` itself.
    """
    layer.__class__ = _subclass(AdaptedLayer, type(layer))
    layer.bottleneck, layer.bottleneck_reads = bottleneck, reads
    layer.bottleneck_norm = () if norm is None else (norm,)
    layer.bottleneck_residual = None
    if observed is not None and reads != "output":
        observed.__class__ = _subclass(ObservedLayer, type(observed))
        layer.bottleneck_residual = observed.observed_residual = Residual()


@torch.no_grad()
def initialise(bottleneck: Bottleneck, init: Init) -> None:
    """Fill the weights in place; biases start at zero.

    "identity": up is zero, so that the model starts as its base (down as He et al. 2021, arXiv:2110.04366); "bert":
    both normal with standard deviation 0.02, which changes the base slightly; "houlsby": both normal with 0.01,
    truncated at two deviations (arXiv:1902.00751, §3.1).
    """
    for layer in (bottleneck.down, bottleneck.up):
        nn.init.zeros_(layer.bias)
        if init == "bert":
            nn.init.normal_(layer.weight, std=0.02)
        elif init == "houlsby":
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
    if init == "identity":
        nn.init.kaiming_uniform_(bottleneck.down.weight, a=math.sqrt(5))
        nn.init.zeros_(bottleneck.up.weight)


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


@functools.cache
def _subclass(kind: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    # A Sequential runs its children in turn, and the bottleneck is none of those.
    runs = {"__iter__": _others, "__len__": lambda self: len(list(_others(self)))}
    parts = runs if issubclass(base, nn.Sequential) else {}
    return type(f"{kind.__name__.removesuffix('Layer')}{base.__name__}", (kind, base), parts)


def _others(layer: nn.Module) -> Iterator[nn.Module]:
    return iter([part for part in layer._modules.values() if not isinstance(part, Bottleneck)])
