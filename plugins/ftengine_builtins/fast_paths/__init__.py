"""Fast paths: computing a model's results with less work."""

from ftengine_builtins.fast_paths.dropout import CpuDropout
from ftengine_builtins.fast_paths.frozen_prefix import FrozenPrefix
from ftengine_builtins.fast_paths.gates import CpuGates
from ftengine_builtins.fast_paths.grouped_keys import GroupedKeys
from ftengine_builtins.fast_paths.grouped_layers import GroupedLayers
from ftengine_builtins.fast_paths.norms import CpuNorms
from ftengine_builtins.fast_paths.rotary import CpuRotary
from ftengine_builtins.fast_paths.shared_prefix import SharedPrefix

__all__ = [
    "CpuDropout",
    "CpuGates",
    "CpuNorms",
    "CpuRotary",
    "FrozenPrefix",
    "GroupedKeys",
    "GroupedLayers",
    "SharedPrefix",
]
