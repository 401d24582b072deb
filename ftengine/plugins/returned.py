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


def wrong(component: Component, method: str, returned: Any, wanted: str) -> PluginError:
    """Return the error that a component's method returned something else than what its contract says."""
    text = f"{named(component)}: {method}() returned {described(returned)}; it must return {wanted}."
    return PluginError(text + without(component))


def described(value: Any) -> str:
    """Say in a few words what something is."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)) and 0 < len(value) <= 3:
        return f"a {type(value).__name__} of {', '.join(map(described, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value):,}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)[:60]
    return f"an object of type {type(value).__qualname__}"


def is_scalar(value: Any, *, tensor: bool = False) -> bool:
    """Say whether something is a number: a tensor of no dimension that has gradients, or, without `tensor`, any."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return value.ndim == 0 and (value.is_floating_point() or not tensor)
    return not tensor and isinstance(value, Real)


def token_count(component: Component, count: Any) -> int | None:
    """Return what `computed_tokens` returned (PluginError: neither a number of tokens nor None)."""
    if not (count is None or (isinstance(count, int) and count > 0)):
        raise wrong(component, "computed_tokens", count, "a number of tokens, or None")
    return count


def each(component: Component, method: str, items: Any, kinds: type[Kind] | tuple[type[Kind], ...]) -> Iterator[Kind]:
    """Yield what a method yields (PluginError: it is no iterable, or an item is of another kind)."""
    names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    if not isinstance(items, Iterable) or isinstance(items, (str, Mapping)):
        raise wrong(component, method, items, f"or yield {names} objects")
    for one in items:
        if not isinstance(one, kinds):
            raise wrong(component, method, one, f"or yield {names} objects")
        yield one


def json_mapping(component: Component, method: str, returned: Any) -> dict[str, Any]:
    """Return a mapping of JSON values as it is (PluginError: it is none)."""
    wanted = "a mapping of JSON values (texts, numbers, lists, mappings, None)"
    if not isinstance(returned, Mapping):
        raise wrong(component, method, returned, wanted)
    for key, value in returned.items():
        try:
            json.dumps({key: value})
        except (TypeError, ValueError):
            raise wrong(component, method, value, f"{wanted}; {key!r} is not one") from None
    return dict(returned)


def matched(strategy: Strategy) -> dict[str, list[str]]:
    """Return a strategy's `matches()` (PluginError: it is no mapping of patterns to lists of names)."""
    matches: Any = strategy.matches()
    names = matches.values() if isinstance(matches, Mapping) else [None]
    if not all(isinstance(paths, (list, tuple)) and all(isinstance(path, str) for path in paths) for paths in names):
        raise wrong(strategy, "matches", matches, "a mapping of each pattern to a list of module names")
    return {str(pattern): list(paths) for pattern, paths in matches.items()}
