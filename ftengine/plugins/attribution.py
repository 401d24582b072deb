"""Attribution of errors: the plugin, distribution and line that raised, or that broke its contract."""

from __future__ import annotations

import inspect
import json
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from numbers import Real
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from ftengine.api import Component, Strategy
from ftengine.errors import FtengineError, PluginError
from ftengine.plugins.class_validation import innermost, written
from ftengine.plugins.discovery import GROUP
from ftengine.plugins.distributions import BLOCK_VARIABLE, BUILT_IN, Offer, offers
from ftengine.plugins.registry import KINDS, RECIPE_KEYS

Kind = TypeVar("Kind")


def blame(error: BaseException) -> str:
    """Return a message that names the plugin from which an unexpected error comes, and the line; "" if there is none.

    The plugin is that of the innermost frame in a plugin's module. If there is no such frame, it is the plugin of a
    component among the locals of the innermost function, which could not call it or could not use its result; the line
    is then that of the component's class. ftengine's own components count as the engine.
    """
    owners = {package: owner for package, owner in _owners().items() if owner.distribution != BUILT_IN}
    frames = list(traceback.walk_tb(error.__traceback__))[::-1]
    own = [(frame, line) for frame, line in frames if _owner(frame.f_globals.get("__name__"), owners)]
    looked_at = [frame for frame, _ in frames] if own else _innermost_function([frame for frame, _ in frames])
    locals_ = (value for frame in looked_at for value in frame.f_locals.values())
    components = [value for value in locals_ if isinstance(value, Component) and _owner(type(value).__module__, owners)]
    if not own and not components:
        return ""
    owner = _owner(own[0][0].f_globals["__name__"] if own else type(components[0]).__module__, owners)
    assert owner is not None
    component = next((value for value in components if _owner(type(value).__module__, owners) is owner), None)
    cause = f"{type(error).__name__}: {error}".rstrip(": ")
    place = _line_of(*own[0]) if own else _written(components[0], error) or _line_of(*frames[0])
    subject = f"plugin {owner.entry_point.name!r} of {owner}" if component is None else named(component)
    workaround = "" if component is None else without(component)
    return f"{subject} failed: {cause} ({place}; run with --debug for the traceback).{workaround}"


def named(component: Component) -> str:
    """Return a component's kind, name and distribution, or its module if it was not installed."""
    module = type(component).__module__
    owner = _owner(module, _owners())
    return f"{_kind(component)} {component.name!r} of {owner or f'module {module}'}"


def cause_in(component: Component, error: BaseException) -> str:
    """Return an error of a component with its place in the component's code: "KeyError: 'x' (ftengine_x.py:31)"."""
    own = innermost(error, type(component).__module__)
    place = _line_of(*own) if own else _written(component, error)
    place = place or _line_of(*list(traceback.walk_tb(error.__traceback__))[-1])
    text = str(error) if isinstance(error, FtengineError) else f"{type(error).__name__}: {error}"
    return f"{text.rstrip(': .')} ({place})"


def without(component: Component) -> str:
    """Return " Run …", how to block a component that no recipe names; "" for others, which a recipe can leave out."""
    owner = _owner(type(component).__module__, _owners())
    if _kind(component) in RECIPE_KEYS or owner is None or owner.distribution == BUILT_IN:
        return ""
    return f" To run without it, set {BLOCK_VARIABLE}={owner.distribution}."


def contract_error(component: Component, method: str, returned: Any, expected: str) -> PluginError:
    """Return the error for a method that returned another value than its contract allows."""
    text = f"{named(component)}: {method}() returned {described(returned)}; it must return {expected}."
    return PluginError(text + without(component))


def described(value: Any) -> str:
    """Return a short description of a value: its type and size."""
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
    """Return whether a value is a number or a scalar tensor; with `tensor`, only a scalar tensor of floats."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return value.ndim == 0 and (value.is_floating_point() or not tensor)
    return not tensor and isinstance(value, Real)


def token_count(component: Component, method: str, count: Any) -> int | None:
    """Return a method's number of tokens (PluginError: it is neither a positive integer nor None)."""
    if not (count is None or (isinstance(count, int) and count > 0)):
        raise contract_error(component, method, count, "a number of tokens, or None")
    return count


def each(component: Component, method: str, items: Any, kinds: type[Kind] | tuple[type[Kind], ...]) -> Iterator[Kind]:
    """Yield the items of a method (PluginError: it is not iterable, or an item has another type)."""
    names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    if not isinstance(items, Iterable) or isinstance(items, (str, Mapping)):
        raise contract_error(component, method, items, f"or yield {names} objects")
    for item in items:
        if not isinstance(item, kinds):
            raise contract_error(component, method, item, f"or yield {names} objects")
        yield item


def json_mapping(component: Component, method: str, returned: Any) -> dict[str, Any]:
    """Return a mapping of JSON values as a dict (PluginError: it is not one)."""
    expected = "a mapping of JSON values (texts, numbers, lists, mappings, None)"
    if not isinstance(returned, Mapping):
        raise contract_error(component, method, returned, expected)
    for key, value in returned.items():
        try:
            json.dumps({key: value})
        except (TypeError, ValueError):
            raise contract_error(component, method, value, f"{expected}; {key!r} is not one") from None
    return dict(returned)


def matched(strategy: Strategy) -> dict[str, list[str]]:
    """Return a strategy's `matches()` (PluginError: it is not a mapping of patterns to lists of names)."""
    matches: Any = strategy.matches()
    names = matches.values() if isinstance(matches, Mapping) else [None]
    if not all(isinstance(paths, (list, tuple)) and all(isinstance(path, str) for path in paths) for paths in names):
        raise contract_error(strategy, "matches", matches, "a mapping of each pattern to a list of module names")
    return {str(pattern): list(paths) for pattern, paths in matches.items()}


def _written(component: Component, error: BaseException) -> str:
    """Return the place of the method that a TypeError names ("Thing.score() takes …"), else of the class."""
    method = re.match(r"[\w.<>]+\.(\w+)\(\) ", str(error)) if isinstance(error, TypeError) else None
    function = getattr(type(component), method[1], None) if method else None
    return written(function if inspect.isfunction(function) else type(component))


def _line_of(frame: FrameType, line: int) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{line}"


def _owners() -> dict[str, Offer]:
    """Return installed plugins by their distribution's package."""
    return {_own_package(offer.entry_point.module): offer for offer in offers(GROUP)}


def _owner(module: str | None, owners: Mapping[str, Offer]) -> Offer | None:
    names = accumulate((module or "").split("."), "{}.{}".format)
    return next((owners[name] for name in names if name in owners), None)


def _own_package(module: str) -> str:
    """Return the outermost package of a module that has a file; several distributions may share a namespace."""
    names = accumulate(module.split("."), "{}.{}".format)
    return next((name for name in names if getattr(sys.modules.get(name), "__file__", None)), module)


def _kind(component: Component) -> str:
    return next(kind for kind, (base, _) in KINDS.items() if isinstance(component, base))


def _innermost_function(frames: list[FrameType]) -> list[FrameType]:
    """Return the frames of the innermost function, with those of its comprehensions."""
    named = (i for i, frame in enumerate(frames) if not frame.f_code.co_name.startswith("<"))
    return frames[: next(named, len(frames)) + 1]
