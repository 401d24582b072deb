"""Low-rank operations: one reference in PyTorch, compiled kernels where a library registers them.

lowrank_linear and lowrank_add are layers with gradients; lowrank_merge_ folds an update into its weight. The
operators below them are torch.ops.ftengine.*. This room imports torch and nothing else.
"""

from ftengine.ops.dropout import draw_seed, quantise_dropout
from ftengine.ops.eligibility import active_backend, why_reference
from ftengine.ops.functional import lowrank_add, lowrank_linear, lowrank_merge_

__all__ = [
    "active_backend",
    "draw_seed",
    "lowrank_add",
    "lowrank_linear",
    "lowrank_merge_",
    "quantise_dropout",
    "why_reference",
]
