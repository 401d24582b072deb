"""torch.ops.ftengine: schemas, the reference behind them, and shapes for torch.compile.

The reference is registered as CompositeExplicitAutograd, so a kernel that a compiled library registers for CPU or
CUDA wins in the dispatcher, and no Python changes. Such a kernel may rely on contiguous matrices, on a p that is a
multiple of 1/65536, on a () int64 seed on x's device wherever p > 0, and on what `why_reference` promises. It must
follow the dtype rule of reference.py and the mask of philox.py.
"""

import torch
from torch import Tensor

from ftengine.ops import reference

library = torch.library.Library("ftengine", "DEF")

SCHEMAS = {
    reference.lowrank_shrink: "(Tensor x, Tensor a, float p, Tensor? seed) -> Tensor",
    reference.lowrank_expand_: "(Tensor(a!) y, Tensor s, Tensor b, float scale) -> ()",
    reference.lowrank_backward_output: "(Tensor dy, Tensor s, Tensor b, float scale) -> (Tensor ds, Tensor db)",
    reference.lowrank_backward_input_: (
        "(Tensor(a!)? dx, Tensor x, Tensor ds, Tensor a, float p, Tensor? seed) -> Tensor"
    ),
    reference.lowrank_merge_: "(Tensor(a!) w, Tensor a, Tensor b, float scale) -> ()",
}

NAMES = tuple(function.__name__ for function in SCHEMAS)

for function, schema in SCHEMAS.items():
    library.define(function.__name__ + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(function.__name__, function, "CompositeExplicitAutograd")


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
