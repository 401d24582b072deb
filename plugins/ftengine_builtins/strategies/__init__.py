"""Strategies that ship with ftengine."""

from ftengine_builtins.strategies.adapter import Adapter
from ftengine_builtins.strategies.full import Full
from ftengine_builtins.strategies.lora import LoRA
from ftengine_builtins.strategies.prefix import Prefix
from ftengine_builtins.strategies.prompt import Prompt

__all__ = [
    "Adapter",
    "Full",
    "LoRA",
    "Prefix",
    "Prompt",
]
