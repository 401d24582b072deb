"""The operators torch.ops.ftengine: schemas, reference implementations, and shapes for torch.compile.

The reference is registered as CompositeExplicitAutograd, so the dispatcher prefers a kernel that a compiled library
registers for CPU or CUDA. Such a kernel may assume that p is a multiple of 1/65536, that a seed is a () int64 tensor on
x's device, and the conditions of `why_reference`. A kernel for a part of a layer may also assume contiguous matrices,
and a seed if p > 0. Kernels must follow the dtype rule of reference.py and the mask of philox.py.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch

from ftengine.ops import composite, reference, shapes

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


def define(
    name: str, schema: str, implementation: Callable[..., object], shape: Callable[..., object], *tags: torch.Tag
) -> torch._ops.OpOverload:
    """Define an operator with its reference implementation and its result shapes; return it."""
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
    library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ftengine::{name}", shape, lib=library)
    return getattr(torch.ops.ftengine, name).default


OPERATORS, REFERENCE = SimpleNamespace(), SimpleNamespace()
"""By name, the operators of the dispatcher, and the same in plain PyTorch, whatever is compiled."""

for name, schema in {**PART_SCHEMAS, **LAYER_SCHEMAS}.items():
    if name in PART_SCHEMAS:
        plain = made = getattr(reference, name)
    else:
        plain, made = (partial(getattr(composite, name), parts) for parts in (REFERENCE, OPERATORS))
    draws = [torch.Tag.nondeterministic_seeded] if name.endswith("forward") else []
    setattr(REFERENCE, name, plain)
    setattr(OPERATORS, name, define(name, schema, made, getattr(shapes, name), *draws))
