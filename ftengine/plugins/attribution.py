"""Whose code it is that raised, or that returned what its contract does not allow: plugin, distribution and line."""

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
    """Say of an unexpected error which installed plugin it comes from, what, and where; "" where it is from none.

    It is that of the innermost frame in a plugin's module, or else the one whose component the innermost function of
    all has called, and cannot call so, or cannot go on with what came back; told is then where its class is written.
    ftengine's own components count as the engine.
    """
    owners = {package: owner for package, owner in _owners().items() if owner.distribution != BUILT_IN}
    frames = list(traceback.walk_tb(error.__traceback__))[::-1]
    own = [(frame, line) for frame, line in frames if _owner(frame.f_globals.get("__name__"), owners)]
    looked_at = [frame for frame, _ in frames] if own else _innermost_function([frame for frame, _ in frames])
    locals_ = (value for frame in looked_at for value in frame.f_locals.values())
    components = [one for one in locals_ if isinstance(one, Component) and _owner(type(one).__module__, owners)]
    if not own and not components:
        return ""
    owner = _owner(own[0][0].f_globals["__name__"] if own else type(components[0]).__module__, owners)
    assert owner is not None
    component = next((one for one in components if _owner(type(one).__module__, owners) is owner), None)
    cause = f"{type(error).__name__}: {error}".rstrip(": ")
    place = _line_of(*own[0]) if own else _written(components[0], error) or _line_of(*frames[0])
    told = f"plugin {owner.entry_point.name!r} of {owner}" if component is None else named(component)
    instead = "" if component is None else without(component)
    return f"{told} failed: {cause} ({place}; run with --debug for the traceback).{instead}"


def layers_of_plugins(error: BaseException) -> str:
    """Say which plugins' layers are in the models that an unexpected error passed through; "" where there are none."""
    owners = {package: owner for package, owner in _owners().items() if owner.distribution != BUILT_IN}
    values = (value for frame, _ in traceback.walk_tb(error.__traceback__) for value in frame.f_locals.values())
    torch = sys.modules.get("torch")
    models = (
        value
        for value in values
        if owners and torch and isinstance(value, torch.nn.Module) and "_modules" in vars(value)  # it is made whole
    )
    kinds = dict.fromkeys(type(part) for model in models for part in model.modules())
    return ", ".join(
        f"{kind.__name__} of {owner}" for kind in kinds if (owner := _owner(kind.__module__, owners)) is not None
    )


def named(component: Component) -> str:
    """Name a component with its kind and its distribution, or its module where it was given by hand."""
    module = type(component).__module__
    owner = _owner(module, _owners())
    return f"{_kind(component)} {component.name!r} of {owner or f'module {module}'}"


def cause_in(component: Component, error: BaseException) -> str:
    """Say what was raised in a component's own code, and where: "KeyError: 'x' (ftengine_x.py:31)"."""
    own = innermost(error, type(component).__module__)
    place = _line_of(*own) if own else _written(component, error)
    place = place or _line_of(*list(traceback.walk_tb(error.__traceback__))[-1])
    text = str(error) if isinstance(error, FtengineError) else f"{type(error).__name__}: {error}"
    return f"{text.rstrip(': .')} ({place})"


def without(component: Component) -> str:
    """Say how to do without a component that no recipe names, " Run …"; "" for others: they can be left out of one."""
    owner = _owner(type(component).__module__, _owners())
    if _kind(component) in RECIPE_KEYS or owner is None or owner.distribution == BUILT_IN:
        return ""
    return f" Run with {BLOCK_VARIABLE}={owner.distribution} to do without it."


def contract_error(component: Component, method: str, returned: Any, wanted: str) -> PluginError:
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


def token_count(component: Component, method: str, count: Any) -> int | None:
    """Return the number of tokens that a method returned (PluginError: neither a number of tokens nor None)."""
    if not (count is None or (isinstance(count, int) and count > 0)):
        raise contract_error(component, method, count, "a number of tokens, or None")
    return count


def each(component: Component, method: str, items: Any, kinds: type[Kind] | tuple[type[Kind], ...]) -> Iterator[Kind]:
    """Yield what a method yields (PluginError: it is no iterable, or an item is of another kind)."""
    names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    if not isinstance(items, Iterable) or isinstance(items, (str, Mapping)):
        raise contract_error(component, method, items, f"or yield {names} objects")
    for one in items:
        if not isinstance(one, kinds):
            raise contract_error(component, method, one, f"or yield {names} objects")
        yield one


def json_mapping(component: Component, method: str, returned: Any) -> dict[str, Any]:
    """Return a mapping of JSON values as it is (PluginError: it is none)."""
    wanted = "a mapping of JSON values (texts, numbers, lists, mappings, None)"
    if not isinstance(returned, Mapping):
        raise contract_error(component, method, returned, wanted)
    for key, value in returned.items():
        try:
            json.dumps({key: value})
        except (TypeError, ValueError):
            raise contract_error(component, method, value, f"{wanted}; {key!r} is not one") from None
    return dict(returned)


def matched(strategy: Strategy) -> dict[str, list[str]]:
    """Return a strategy's `matches()` (PluginError: it is no mapping of patterns to lists of names)."""
    matches: Any = strategy.matches()
    names = matches.values() if isinstance(matches, Mapping) else [None]
    if not all(isinstance(paths, (list, tuple)) and all(isinstance(path, str) for path in paths) for paths in names):
        raise contract_error(strategy, "matches", matches, "a mapping of each pattern to a list of module names")
    return {str(pattern): list(paths) for pattern, paths in matches.items()}


def _written(component: Component, error: BaseException) -> str:
    """Return where the method is written that a TypeError names ("Thing.score() takes …"), else the class."""
    method = re.match(r"[\w.<>]+\.(\w+)\(\) ", str(error)) if isinstance(error, TypeError) else None
    function = getattr(type(component), method[1], None) if method else None
    return written(function if inspect.isfunction(function) else type(component))


def _line_of(frame: FrameType, line: int) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{line}"


def _owners() -> dict[str, Offer]:
    """Return what is installed, by the package that is a distribution's own."""
    return {_own_package(offer.entry_point.module): offer for offer in offers(GROUP)}


def _owner(module: str | None, owners: Mapping[str, Offer]) -> Offer | None:
    names = accumulate((module or "").split("."), "{}.{}".format)
    return next((owners[name] for name in names if name in owners), None)


def _own_package(module: str) -> str:
    """Return the outermost package of a module that has a file; those without (namespaces) several share."""
    names = accumulate(module.split("."), "{}.{}".format)
    return next((name for name in names if getattr(sys.modules.get(name), "__file__", None)), module)


def _kind(component: Component) -> str:
    return next(kind for kind, (base, _) in KINDS.items() if isinstance(component, base))


def _innermost_function(frames: list[FrameType]) -> list[FrameType]:
    """Return the frames of the innermost function: its comprehensions, which have frames of their own, and itself."""
    named = (i for i, frame in enumerate(frames) if not frame.f_code.co_name.startswith("<"))
    return frames[: next(named, len(frames)) + 1]
