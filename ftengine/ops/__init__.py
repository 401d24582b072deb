"""Low-rank operations, in PyTorch and as compiled kernels.

lowrank_linear, lowrank_linears and lowrank_add are layers with gradients; lowrank_merge_ folds an update into its
weight. The operators below them, and those of the norms in elementwise.py, are torch.ops.ftengine.*. This room imports
torch and nothing else.
"""

from ftengine.ops import attention as attention  # which register their operators
from ftengine.ops import elementwise as elementwise
from ftengine.ops import library
from ftengine.ops.dropout import draw_seed, quantise_dropout
from ftengine.ops.eligibility import active_backend, use_reference, why_reference
from ftengine.ops.experts import ExpertMap, lowrank_experts
from ftengine.ops.functional import lowrank_add, lowrank_linear, lowrank_linears, lowrank_merge_
from ftengine.ops.library import instruction_sets, use_instruction_set
from ftengine.ops.precision import without_autocast

__all__ = [
    "ExpertMap",
    "active_backend",
    "draw_seed",
    "instruction_sets",
    "lowrank_add",
    "lowrank_experts",
    "lowrank_linear",
    "lowrank_linears",
    "lowrank_merge_",
    "quantise_dropout",
    "use_instruction_set",
    "use_reference",
    "why_reference",
    "without_autocast",
]

library.load()
