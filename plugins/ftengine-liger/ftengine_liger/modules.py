"""Modules that Liger's kernels can compute, and how each is asked on its first batch whether they do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ftengine.model import rms_norm_of
from ftengine_liger.kernels import DTYPES, Binary, agree, gate_kernel, norm_kernel, once, serves, undisturbed


@dataclass
class Outcome:
    """What the first batch showed: modules that a kernel computes, by what they are, and what kernels raised."""

    modules: Counter[str] = field(default_factory=Counter)
    errors: list[Exception] = field(default_factory=list)


class Replaced:
    """A module's `forward` that computes by a kernel where the first batch showed that it can.

    Args:
        module: its own code computes everything else: other dtypes and arguments, and what the kernel would change.
        outcome: told of what becomes of it.
    """

    def __init__(self, module: nn.Module, outcome: Outcome) -> None:
        self.module, self.outcome = module, outcome
        self._by_dtype: dict[torch.dtype, Any] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the module's own `forward` does."""
        x = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(x, Tensor) or x.dtype not in DTYPES or not serves(x.device) or not x.numel():
            return self.plain(*args, **kwargs)
        if x.dtype not in self._by_dtype:
            if not self.module.training:  # what it computes while it trains does not show
                return self.plain(x)
            self._by_dtype[x.dtype] = self._asked(x)
        how = self._by_dtype[x.dtype]
        return self.plain(x) if how is None else self.compute(x, how)

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """Compute by the module's own code."""
        return type(self.module).forward(self.module, *args, **kwargs)

    def _asked(self, x: Tensor) -> Any:
        try:
            name, how = self.look(x)
        except Exception as error:  # a kernel does not compile here, or is not made for these sizes
            self.outcome.errors.append(error)
            return None
        if how is not None and not any(self._by_dtype.values()):
            self.outcome.modules[name] += 1
        return how

    def look(self, x: Tensor) -> tuple[str, Any]:
        """Return what the module is and how a kernel computes it; None in its place where its own code does."""
        raise NotImplementedError

    def compute(self, x: Tensor, how: Any) -> Tensor:
        """Compute by a kernel."""
        raise NotImplementedError


class Norm(Replaced):
    """An RMS norm, if it is one: y = (w + offset) ∘ x / sqrt(mean(x²) + eps)."""

    @staticmethod
    def may_be(module: nn.Module) -> bool:
        """Say whether a module has a vector of parameters and nothing below it."""
        parameters = list(module._parameters.values())
        return not module._modules and len(parameters) == 1 and parameters[0] is not None and parameters[0].dim() == 1

    def look(self, x: Tensor) -> tuple[str, Any]:
        with undisturbed():
            norm = rms_norm_of(self.module, [x.dtype])
        if norm is None or self.weight.dtype != x.dtype:
            return "", None
        kernel = norm_kernel(norm.offset, norm.eps, "gemma" if norm.offset else "llama")
        fits = agree(kernel, partial(rms_norm, norm.offset, norm.eps), x, self.weight)
        return "RMS norms", once(kernel) if fits else None

    def compute(self, x: Tensor, how: Binary) -> Tensor:
        return how(x, self.weight)

    @property
    def weight(self) -> Tensor:
        return next(self.module.parameters())


def rms_norm(offset: float, eps: float, x: Tensor, weight: Tensor) -> Tensor:
    """Return (w + offset) ∘ x / sqrt(mean(x²) + eps) by PyTorch's steps, rounded as most models do it."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return ((weight + offset) * (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)).to(x.dtype)


@dataclass(frozen=True)
class Gate:
    """How a block computes: the names of its three linear layers, in the order of its calls, and the kernel."""

    gate: str
    up: str
    down: str
    gate_first: bool
    kernel: Binary


class GatedBlock(Replaced):
    """A feed-forward block, if it is one: y = down(activation(gate(x)) * up(x)).

    Which child is which shows in a pass of the module's own code, and so does whether it computes anything beside that.
    """

    @staticmethod
    def may_be(module: nn.Module) -> bool:
        """Say whether a module has three linear layers, an activation of a gate, and nothing else."""
        children = list(module._modules.values())
        linear = [child for child in children if hasattr(child, "in_features") and hasattr(child, "out_features")]
        bare = [child for child in children if child is not None and _bare(child)]
        shaped = len(children) == 4 and len(linear) == 3 and len(bare) == 1 and not module._parameters
        return shaped and gate_kernel(bare[0]) is not None

    def look(self, x: Tensor) -> tuple[str, Any]:
        watch, y = self._watched(x)
        if len(watch.calls) != 4 or len(watch.given) != 4 or watch.between not in (["mul"], ["multiply"]):
            return "", None
        given, out, order = watch.given, watch.made, watch.calls
        (activation,), down = (name for name in order if _bare(self.module.get_submodule(name))), order[-1]
        gate = next((name for name in order if out[name] is given[activation]), "")
        up = next((name for name in order if name not in (gate, activation, down)), "")
        if not (gate and up) or down in (gate, activation):
            return "", None
        a, b = out[gate], out[up]
        whole = given[gate] is x and given[up] is x and out[down] is y and a.dtype == b.dtype and a.shape == b.shape
        known = gate_kernel(act := self.module.get_submodule(activation))
        if known is None or not whole or not torch.equal(given[down], out[activation] * b):
            return "", None
        name, kernel = known
        if not agree(kernel, lambda a, b: act(a) * b, a, b):
            return "", None
        return f"{name} blocks", Gate(gate, up, down, order.index(gate) < order.index(up), once(kernel))

    def compute(self, x: Tensor, how: Gate) -> Tensor:
        names = (how.gate, how.up) if how.gate_first else (how.up, how.gate)  # random numbers are drawn within
        made = {name: getattr(self.module, name)(x) for name in names}
        return getattr(self.module, how.down)(how.kernel(made[how.gate], made[how.up]))

    def _watched(self, x: Tensor) -> tuple[Watch, Any]:
        """Run the module's own code, and say what it did and returned; random numbers are drawn again afterwards."""
        watch = Watch(dict(self.module.named_children()))
        try:
            with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.no_grad(), watch:
                return watch, self.plain(x)
        finally:
            watch.remove()


class Watch(TorchFunctionMode):
    """Sees what children of a module are given and return, and which functions are called between them."""

    def __init__(self, children: dict[str, nn.Module]) -> None:
        super().__init__()
        self.calls, self.between = list[str](), list[str]()
        self.given, self.made = dict[str, Any](), dict[str, Any]()
        self._within = 0
        self._handles = []
        for name, child in children.items():
            self._handles.append(child.register_forward_pre_hook(partial(self._enter, name), prepend=True))
            self._handles.append(child.register_forward_hook(partial(self._leave, name)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if not self._within and name != "__get__":
            self.between.append(name.strip("_"))
        return func(*args, **(kwargs or {}))

    def remove(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, name: str, child: nn.Module, args: tuple[Any, ...]) -> None:
        self._within += 1
        self.given[name] = args[0] if len(args) == 1 else None

    def _leave(self, name: str, child: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        self._within -= 1
        self.calls.append(name)
        self.made[name] = made


def _bare(module: nn.Module) -> bool:
    """Say whether a module has nothing but code, as activations do."""
    return not (module._parameters or module._modules or module._buffers)
