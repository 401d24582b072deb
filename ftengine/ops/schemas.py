"""torch.ops.ftengine: schemas, the reference behind them, and shapes for torch.compile.

The reference is registered as CompositeExplicitAutograd, so a kernel that a compiled library registers for CPU or
CUDA wins in the dispatcher, and no Python changes. Such a kernel may rely on a p that is a multiple of 1/65536, on a
() int64 seed on x's device wherever there is one, and on what `why_reference` promises; a kernel for a part of a layer
on contiguous matrices and a seed wherever p > 0, too. It must follow the dtype rule of reference.py and the mask of
philox.py.
"""

from functools import partial
from math import prod
from types import SimpleNamespace

import torch
from torch import Tensor

from ftengine.ops import composite, reference

library = torch.library.Library("ftengine", "DEF")

PART_SCHEMAS = {
    "lowrank_shrink": "(Tensor x, Tensor a, float p, Tensor? seed) -> Tensor",
    "lowrank_expand_": "(Tensor(a!) y, Tensor s, Tensor b, float scale) -> ()",
    "lowrank_backward_output": "(Tensor dy, Tensor s, Tensor b, float scale) -> (Tensor ds, Tensor db)",
    "lowrank_backward_input_": "(Tensor(a!)? dx, Tensor x, Tensor ds, Tensor a, float p, Tensor? seed) -> Tensor",
    "lowrank_merge_": "(Tensor(a!) w, Tensor a, Tensor b, float scale) -> ()",
}
"""What every compiled library has."""

LAYER_SCHEMAS = {
    "lowrank_forward": "(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scale, float p, Tensor? seed)"
    " -> (Tensor y, Tensor s, Tensor seed)",
    "lowrank_backward": "(Tensor dy, Tensor x, Tensor s, Tensor seed, Tensor weight, Tensor a, Tensor b, float scale, "
    "float p, bool input_gradient) -> (Tensor da, Tensor db, Tensor dx)",
    "lowrank_group_forward": "(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor[] a, Tensor[] b, float[] scales, "
    "float p, Tensor? seed) -> (Tensor[] ys, Tensor s, Tensor seed)",
    "lowrank_group_backward": "(Tensor[] dys, Tensor x, Tensor s, Tensor seed, Tensor[] weights, Tensor[] a, "
    "Tensor[] b, float[] scales, float p, bool input_gradient) -> Tensor[]",
    "lowrank_expand": "(Tensor y, Tensor s, Tensor b, float scale) -> Tensor",
    "lowrank_backward_input": "(Tensor x, Tensor ds, Tensor a, float p, Tensor? seed) -> (Tensor dx, Tensor da)",
}
"""Layers whole; a library without them computes them from the parts."""

NAMES = (*LAYER_SCHEMAS, *PART_SCHEMAS)

PT2 = torch.Tag.pt2_compliant_tag


def define(name: str, schema: str, implementation: object, *tags: torch.Tag) -> torch._ops.OpOverload:
    """Register an operator and what serves wherever no compiled kernel does; return it."""
    library.define(name + schema, tags=(PT2, *tags))
    library.impl(name, implementation, "CompositeExplicitAutograd")
    return getattr(torch.ops.ftengine, name).default


PARTS = SimpleNamespace(
    **{name: define(name, schema, getattr(reference, name)) for name, schema in PART_SCHEMAS.items()}
)
"""The operators on the parts of a layer, by name."""

DRAWS = {name: (torch.Tag.nondeterministic_seeded,) for name in LAYER_SCHEMAS if name.endswith("forward")}

FORWARD, BACKWARD, GROUP_FORWARD, GROUP_BACKWARD, EXPAND, BACKWARD_INPUT = (
    define(name, schema, partial(getattr(composite, name), PARTS), *DRAWS.get(name, ()))
    for name, schema in LAYER_SCHEMAS.items()
)


@torch.library.register_fake("ftengine::lowrank_forward", lib=library)
def _(x, weight, bias, a, b, scale, p, seed):  # type: ignore[no-untyped-def]
    s = x.new_empty(prod(x.shape[:-1]), a.shape[0])
    return x.new_empty(*x.shape[:-1], b.shape[0]), s, x.new_empty(() if p else (0,), dtype=torch.int64)


@torch.library.register_fake("ftengine::lowrank_backward", lib=library)
def _(dy, x, s, seed, weight, a, b, scale, p, input_gradient):  # type: ignore[no-untyped-def]
    return a.new_empty(a.shape), b.new_empty(b.shape), x.new_empty(x.shape if input_gradient else 0)


@torch.library.register_fake("ftengine::lowrank_group_forward", lib=library)
def _(x, weights, biases, a, b, scales, p, seed):  # type: ignore[no-untyped-def]
    ys = [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]
    s = x.new_empty(prod(x.shape[:-1]), sum(factor.shape[0] for factor in a))
    return ys, s, x.new_empty(() if p else (0,), dtype=torch.int64)


@torch.library.register_fake("ftengine::lowrank_group_backward", lib=library)
def _(dys, x, s, seed, weights, a, b, scales, p, input_gradient):  # type: ignore[no-untyped-def]
    gradients = [factor.new_empty(factor.shape) for factor in (*a, *b)]
    return [*gradients, x.new_empty(x.shape)] if input_gradient else gradients


@torch.library.register_fake("ftengine::lowrank_expand", lib=library)
def _(y: Tensor, s: Tensor, b: Tensor, scale: float) -> Tensor:
    return y.new_empty(y.shape)


@torch.library.register_fake("ftengine::lowrank_backward_input", lib=library)
def _(x: Tensor, ds: Tensor, a: Tensor, p: float, seed: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), a.new_empty(a.shape)


@torch.library.register_fake("ftengine::lowrank_shrink", lib=library)
def _(x: Tensor, a: Tensor, p: float, seed: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], a.shape[0])


@torch.library.register_fake("ftengine::lowrank_expand_", lib=library)
def _(y: Tensor, s: Tensor, b: Tensor, scale: float) -> None:
    return None


@torch.library.register_fake("ftengine::lowrank_backward_output", lib=library)
def _(dy: Tensor, s: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return dy.new_empty(s.shape), b.new_empty(b.shape)


@torch.library.register_fake("ftengine::lowrank_backward_input_", lib=library)
def _(dx: Tensor | None, x: Tensor, ds: Tensor, a: Tensor, p: float, seed: Tensor | None) -> Tensor:
    return a.new_empty(a.shape)


@torch.library.register_fake("ftengine::lowrank_merge_", lib=library)
def _(w: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    return None
