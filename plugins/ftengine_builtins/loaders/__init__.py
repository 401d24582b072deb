"""Model loaders that ship with ftengine."""

from ftengine_builtins.loaders.callable import CallableLoader
from ftengine_builtins.loaders.gguf import GgufLoader
from ftengine_builtins.loaders.package import PackageLoader
from ftengine_builtins.loaders.timm import TimmLoader
from ftengine_builtins.loaders.torchvision import TorchvisionLoader
from ftengine_builtins.loaders.transformers import TransformersLoader

__all__ = [
    "CallableLoader",
    "GgufLoader",
    "PackageLoader",
    "TimmLoader",
    "TorchvisionLoader",
    "TransformersLoader",
]
