"""Comparing values and models in checks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import Features
from ftengine.equivalence import same_figure
from ftengine.parallel.precision import Precision, apply_precision


def equal(first: Any, other: Any) -> bool:
    """Return whether two values are equal: tensors by all elements, mappings and lists by their items."""
    return _compare(first, other, lambda a, b: bool(a == b) or bool(a != a and b != b))


def close(first: Any, other: Any) -> bool:
    """Return whether two values are equal within the rounding of floats."""
    return _compare(first, other, lambda a, b: same_figure(a, b, 1e-6) if isinstance(a, float) else bool(a == b))


@contextmanager
def explained(
    failure: str, advice: str, kinds: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Turn a component's error (by default any) into an AssertionError with the failure, the error and advice."""
    try:
        yield
    except kinds as error:
        raise AssertionError(f"{failure} ({type(error).__name__}: {error}): {advice}") from error


def require_named_code(description: Any) -> None:
    """Fail unless `runs_code` returned a text or None."""
    assert description is None or (isinstance(description, str) and description.strip()), (
        f"runs_code returns {description!r:.60}, not a description of the code that runs besides plugins, or None"
    )


BFLOAT16 = Precision(torch.bfloat16, torch.bfloat16, "it is checked")
"""How a run in bfloat16 computes."""


@contextmanager
def in_bfloat16(module: nn.Module) -> Iterator[None]:
    """Within the block, let a model compute as in a bfloat16 run: frozen weights in bfloat16, with autocast."""
    apply_precision(module, BFLOAT16)
    with torch.autocast("cpu", torch.bfloat16):
        yield


def without_values(method: str) -> AbstractContextManager[None]:
    """Within the block, explain errors of a method that gets a model on the meta device."""
    failure = f"{method} fails on a model on the meta device, whose weights have shapes but no values"
    advice = (
        "it is called with such a model first, so read no values there, and make new parameters on the device of the "
        "weights that they go with"
    )
    return explained(failure, advice, (NotImplementedError, RuntimeError))


_unpickled: list[str] | None = None


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "pickle.find_class" and _unpickled is not None:
        _unpickled.append(".".join(map(str, arguments)))


@cache
def _watch() -> None:
    sys.addaudithook(_notice)  # it cannot be taken away again, so there is one


@contextmanager
def without_pickles() -> Iterator[None]:
    """Raise AssertionError if something is unpickled, because a pickle may run any code."""
    global _unpickled
    _watch()
    _unpickled = []
    try:
        yield
        assert not _unpickled, f"it reads a pickle ({_unpickled[0]}), which may run any code: use safetensors"
    finally:
        _unpickled = None


def require_meta(module: nn.Module) -> None:
    """Raise AssertionError if a parameter is not on the meta device."""
    real = [name for name, p in module.named_parameters() if not p.is_meta]
    assert not real, f"{real[0]!r} is not on the meta device, as the model is: make it on its layer's device"


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors that share no memory with them."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _compare(first: Any, other: Any, plain: Callable[[Any, Any], bool]) -> bool:
    if isinstance(first, Tensor) and isinstance(other, Tensor):
        return first.shape == other.shape and first.dtype == other.dtype and first.equal(other)
    if isinstance(first, Mapping) and isinstance(other, Mapping):
        return first.keys() == other.keys() and all(_compare(first[key], other[key], plain) for key in first)
    if isinstance(first, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(first) == len(other) and all(_compare(a, b, plain) for a, b in zip(first, other, strict=True))
    if isinstance(first, Features) and isinstance(other, Features):
        return all(_compare(getattr(first, name), getattr(other, name), plain) for name in Features.__slots__)
    return type(first) is type(other) and plain(first, other)
