"""Gated blocks of a model that trains on a CPU: the gate's activation and product by one compiled operation."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ftengine.api import FastPath, LoadedModel, TrainingContext
from ftengine.ops.elementwise import silu_mul
from ftengine_builtins.fast_paths.cpu import DTYPES, Forward, other_forwards, require_kernels

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where an activation has what wants to see it called."""


class CpuGates(FastPath):
    """Gated blocks on a CPU: silu(gate) * up by one compiled operation (SwiGLU, Shazeer 2020, arXiv:2002.05202)."""

    name = "cpu-gates"

    def check_device(self, device: torch.device) -> None:
        require_kernels(self.name, device)

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        with other_forwards(loaded.module, _forward_of) as blocks:
            yield {"gated blocks": blocks} if blocks else None


def _forward_of(module: nn.Module) -> Forward | None:
    names = gated(type(module).forward)
    return _forward(*names) if names is not None and _is_silu(getattr(module, names[1], None)) else None


@lru_cache(256)
def gated(forward: Forward) -> tuple[str, str, str, str] | None:
    """Return the names of a gated block's children: down, activation, gate, up. None where a module is no such block.

    It is one where its class's forward does nothing but return down(activation(gate(x)) * up(x)), as its source says.
    """
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(forward))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if not isinstance(function, ast.FunctionDef) or function.decorator_list or hasattr(forward, "__wrapped__"):
        return None
    given = function.args
    if len(given.args) != 2 or given.args[0].arg != "self" or ast.dump(given) != ast.dump(_arguments(given)):
        return None
    match function.body:
        case [ast.Assign(targets=[ast.Name(id=kept)], value=value), ast.Return(value=ast.Name(id=back))] if (
            kept == back
        ):
            pass
        case [ast.Return(value=value)]:
            pass
        case _:
            return None
    down, product = _called(value)
    if down is None or not isinstance(product, ast.BinOp) or not isinstance(product.op, ast.Mult):
        return None
    (activation, inner), (up, x) = _called(product.left), _called(product.right)
    gate, other = _called(inner)
    same = isinstance(x, ast.Name) and isinstance(other, ast.Name) and x.id == other.id == given.args[1].arg
    return (down, activation, gate, up) if same and activation and gate and up else None


def _arguments(given: ast.arguments) -> ast.arguments:
    """Return arguments that have names alone: no defaults, none by keyword, no others."""
    return ast.arguments([], given.args, None, [], [], None, [])


def _called(node: ast.AST | None) -> tuple[str | None, ast.AST | None]:
    """Return a child's name and what it is called with, of `self.child(value)`."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name), args=[value], keywords=[]):
            return name, value
    return None, None


def _is_silu(activation: Any) -> bool:
    """Say whether an activation is x σ(x): by its values at numbers of several sizes."""
    x = torch.linspace(-30, 30, 301)
    try:
        return isinstance(activation, nn.Module) and torch.equal(activation(x), silu(x))
    except Exception:  # it takes something else, and may say so in any way
        return False


def _forward(down: str, activation: str, gate: str, up: str) -> Forward:
    def forward(self: nn.Module, x: Tensor) -> Any:
        one, other, act = getattr(self, gate)(x), getattr(self, up)(x), getattr(self, activation)
        alike = (
            one.device.type == "cpu" and one.dtype in DTYPES and one.dtype == other.dtype and one.shape == other.shape
        )
        if not alike or "forward" in vars(act) or any(getattr(act, name) for name in HOOKS):
            return getattr(self, down)(act(one) * other)
        return getattr(self, down)(silu_mul(one, other))

    return forward
