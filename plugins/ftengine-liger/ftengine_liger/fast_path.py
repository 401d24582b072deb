"""The fast path that computes modules by Liger's kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ftengine import api
from ftengine.errors import RecipeError
from ftengine.model import GatedBlock, RMSNorm, gated_block_of, rms_norm_of


class Liger(api.FastPath):
    """RMS norms and gated feed-forward blocks by Liger's kernels, on a GPU.

    Norms are recognised by their function, gated blocks by the names of their children in transformers.
    """

    name = "liger"
    paper = "Hsu et al. 2024, Liger Kernel: Efficient Triton Kernels for LLM Training, arXiv:2410.10989"

    class Config(api.Config):
        """What a recipe may set."""

        norms: bool = Field(True, description="compute RMS norms")
        gates: bool = Field(True, description="compute SwiGLU and GeGLU: activation(gate(x)) * up(x)")

    def check_device(self, device: torch.device) -> None:
        from ftengine_liger.kernels import serves

        if not serves(device):
            raise RecipeError(f"fast path 'liger' needs a GPU of NVIDIA, and the model computes on {device}")

    @contextmanager
    def activate(self, loaded: api.LoadedModel, context: api.TrainingContext) -> Iterator[Mapping[str, int] | None]:
        """Within the block, replace the `forward` of norms and gated blocks; yield the number of each kind."""
        counts, changed = Counter[str](), list[nn.Module]()
        try:
            for module in loaded.module.modules():
                kind, forward = self._forward_of(module) if "forward" not in vars(module) else ("", None)
                if forward is not None:
                    vars(module)["forward"] = forward.__get__(module)  # type: ignore[attr-defined]
                    changed.append(module)
                    counts[kind] += 1
            yield counts or None
        finally:
            for module in changed:
                vars(module).pop("forward", None)

    def _forward_of(self, module: nn.Module) -> tuple[str, Callable[..., Any] | None]:
        """Return what a module is, and a `forward` by a kernel; None where it keeps its own."""
        from ftengine_liger.kernels import DTYPES, gate_kernel

        if self.config.norms and (norm := rms_norm_of(module, DTYPES)) is not None:
            return "RMS norms", _norm_forward(type(module).forward, norm)
        if self.config.gates and (block := gated_block_of(module)) is not None:
            known = gate_kernel(module.get_submodule(block.activation))
            return ("", None) if known is None else (f"{known[0]} blocks", _gated_forward(block, known[1]))
        return "", None


def _norm_forward(plain: Callable[..., Any], norm: RMSNorm) -> Callable[..., Any]:
    from ftengine_liger.kernels import norm_kernel, once, serves

    kernel = once(norm_kernel(norm.offset, norm.eps, "gemma" if norm.offset else "llama"))

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        weight = next(self.parameters())
        if args or kwargs or x.dtype not in norm.dtypes or x.dtype != weight.dtype or not serves(x.device):
            return plain(self, x, *args, **kwargs)
        return kernel(x, weight) if x.numel() else plain(self, x)

    return forward


def _gated_forward(block: GatedBlock, kernel: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    from ftengine_liger.kernels import DTYPES, once, serves

    product = once(kernel)

    def forward(self: nn.Module, x: Tensor) -> Any:
        gate, up = getattr(self, block.gate)(x), getattr(self, block.up)(x)
        if gate.dtype in DTYPES and gate.dtype == up.dtype and serves(gate.device) and gate.numel():
            return getattr(self, block.down)(product(gate, up))
        return getattr(self, block.down)(getattr(self, block.activation)(gate) * up)

    return forward
