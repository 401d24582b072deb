"""The depth of each parameter: embeddings below, numbered blocks above one another, the head on top.

Found from the module tree alone, so that no architecture needs a description: a stack of blocks is a numbered sequence
of modules, and modules defined before it feed it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ftengine.api import LoadedModel
from ftengine.errors import RecipeError
from ftengine_builtins.strategies.targets import inside, output_head


@dataclass(frozen=True)
class Levels:
    """The level of each parameter.

    Args:
        of: level by parameter name; modules before the blocks have 0, blocks 1, 2, … from the bottom.
        head: level of the head, one above the blocks of the deepest stack.
        output: name of the output matrix, which may be the embeddings' as well (tied).
        new_head: whether the head was newly initialised.
    """

    of: Mapping[str, int]
    head: int
    output: frozenset[str]
    new_head: bool


def find_levels(loaded: LoadedModel) -> Levels:
    """Find the level of every parameter (RecipeError: the model has no numbered blocks).

    Parallel stacks (encoder and decoder) end at the same level, as the distance from the top counts (Raffel et al.
    2020, §3.5.1). A ResNet's blocks are its stages.
    """
    module = loaded.module
    stacks = block_stacks(module)
    if not stacks:
        raise RecipeError(
            f"strategy.layer_decay and strategy.unfreeze_every need layers, but {type(module).__name__} has no "
            "numbered blocks (encoder.layer.0, encoder.layer.1, …). Leave both out; strategy.freeze takes any name."
        )
    head = max(map(len, stacks)) + 1
    level_of_block = {path: head - len(stack) + i for stack in stacks for i, path in enumerate(stack)}
    levels: dict[str, int] = {}
    weight, met = getattr(output_head(module), "weight", None), False
    output = frozenset(name for name, parameter in module.named_parameters() if parameter is weight)
    for name, _ in module.named_parameters():
        parts = name.split(".")
        around = (".".join(parts[:end]) for end in range(1, len(parts)))
        level = next((level_of_block[path] for path in around if path in level_of_block), None)
        if inside(name, loaded.new_modules):
            levels[name] = head
        elif level is not None:
            levels[name], met = level, True
        else:
            # Modules are defined in the order in which they compute, but for embeddings of a decoder.
            above = met and (name in output or "embed" not in name.lower())
            levels[name] = head if above else 0
    return Levels(levels, head, output, bool(loaded.new_modules))


def block_stacks(module: nn.Module, prefix: str = "") -> list[list[str]]:
    """Return the outermost numbered sequences of blocks, each as module paths from the bottom up.

    Numbers are a list's indices (`layers.0`) or endings of names (`layer1`). The members are of one class, or each
    contain modules; if only single layers are numbered, those are used.
    """
    stacks = _stacks(module, prefix)
    composite = [stack for stack in stacks if any(_is_composite(module.get_submodule(path)) for path in stack)]
    return composite or stacks


def _stacks(module: nn.Module, prefix: str) -> list[list[str]]:
    children = {name: child for name, child in module.named_children() if _has_parameters(child)}
    sequences: dict[str, list[str]] = {}
    for name in children:
        if stem := re.fullmatch(r"(.*?)\d+", name):
            sequences.setdefault(stem[1], []).append(name)
    stacks, taken = [], set()
    for names in sequences.values():
        members = [children[name] for name in names]
        alike = len({type(member) for member in members}) == 1
        several = len(members) > 1 and (alike or all(map(_is_composite, members)))
        if several or isinstance(module, nn.ModuleList):
            stacks.append([f"{prefix}{name}" for name in names])
            taken.update(names)
    for name, child in children.items():
        if name not in taken:
            stacks += _stacks(child, f"{prefix}{name}.")
    return stacks


def _is_composite(module: nn.Module) -> bool:
    return any(map(_has_parameters, module.children()))


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
