"""What components return, checked where the engine takes it, so that an error names whose it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any, TypeVar

from ftengine.api import Component, Strategy
from ftengine.errors import PluginError
from ftengine.plugins.blame import named, without

Kind = TypeVar("Kind")


def wrong(component: Component, method: str, found: Any, wanted: str) -> PluginError:
    """Return the error that a component's method returned something else than what its contract says."""
    text = f"{named(component)}: {method}() returned {described(found)}; it must return {wanted}."
    return PluginError(text + without(component))


def described(found: Any) -> str:
    """Say in a few words what something is."""
    from torch import Tensor

    if isinstance(found, Tensor):
        return f"a {str(found.dtype).removeprefix('torch.')} tensor of shape {tuple(found.shape)}"
    if isinstance(found, (tuple, list)) and 0 < len(found) <= 3:
        return f"a {type(found).__name__} of {', '.join(map(described, found))}"
    if isinstance(found, (tuple, list)):
        return f"a {type(found).__name__} of {len(found):,}"
    if found is None or isinstance(found, (bool, int, float, str)):
        return repr(found)[:60]
    return f"an object of type {type(found).__qualname__}"


def is_scalar(value: Any, *, tensor: bool = False) -> bool:
    """Say whether something is a number: a tensor of no dimension that has gradients, or, without `tensor`, any."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return value.ndim == 0 and (value.is_floating_point() or not tensor)
    return not tensor and isinstance(value, Real)


def token_count(component: Component, found: Any) -> int | None:
    """Return what `computed_tokens` returned (PluginError: neither a number of tokens nor None)."""
    if not (found is None or (isinstance(found, int) and found > 0)):
        raise wrong(component, "computed_tokens", found, "a number of tokens, or None")
    return found


def each(component: Component, method: str, found: Any, kinds: type[Kind] | tuple[type[Kind], ...]) -> Iterator[Kind]:
    """Yield what a method yields (PluginError: it is no iterable, or an item is of another kind)."""
    names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    if not isinstance(found, Iterable) or isinstance(found, (str, Mapping)):
        raise wrong(component, method, found, f"or yield {names} objects")
    for one in found:
        if not isinstance(one, kinds):
            raise wrong(component, method, one, f"or yield {names} objects")
        yield one


def json_mapping(component: Component, method: str, found: Any) -> dict[str, Any]:
    """Return a mapping of JSON values as it is (PluginError: it is none)."""
    wanted = "a mapping of JSON values (texts, numbers, lists, mappings, None)"
    if not isinstance(found, Mapping):
        raise wrong(component, method, found, wanted)
    for key, value in found.items():
        try:
            json.dumps({key: value})
        except (TypeError, ValueError):
            raise wrong(component, method, value, f"{wanted}; {key!r} is not one") from None
    return dict(found)


def matched(strategy: Strategy) -> dict[str, list[str]]:
    """Return a strategy's `matches()` (PluginError: it is no mapping of patterns to lists of names)."""
    found: Any = strategy.matches()
    names = found.values() if isinstance(found, Mapping) else [None]
    if not all(isinstance(paths, (list, tuple)) and all(isinstance(path, str) for path in paths) for paths in names):
        raise wrong(strategy, "matches", found, "a mapping of each pattern to a list of module names")
    return {str(pattern): list(paths) for pattern, paths in found.items()}
