"""Comparing values, whatever they are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

ROUNDING = 1e-4
"""How far figures may differ, relative to their size, that float32 computes in batches of other shapes."""


def equal(one: Any, other: Any) -> bool:
    """Say whether two values are equal: tensors by all elements, mappings and lists by what is in them."""
    return _compare(one, other, lambda a, b: bool(a == b) or bool(a != a and b != b))


def close(one: Any, other: Any) -> bool:
    """Say whether two values are equal but for the rounding of floats."""
    return _compare(one, other, lambda a, b: _near(a, b) if isinstance(a, float) else bool(a == b))


def relative(found: Tensor, expected: Tensor) -> float:
    """Return ‖found - expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())


def require_json(found: Any, what: str) -> None:
    """Raise AssertionError where something is no mapping of JSON values."""
    assert isinstance(found, dict), f"{what} returns {found!r}; it must return a dict of JSON values"
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{what} returns what JSON does not know ({error}): {found!r}") from None


def _compare(one: Any, other: Any, plain: Callable[[Any, Any], bool]) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_compare(one[key], other[key], plain) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_compare(a, b, plain) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and plain(one, other)


def _near(one: float, other: Any) -> bool:
    if not isinstance(other, (int, float)) or not (math.isfinite(one) and math.isfinite(other)):
        return str(one) == str(other)
    return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=1e-5)
