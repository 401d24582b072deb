"""Whose code it was that raised: the plugin in a traceback."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from types import FrameType

from ftengine.api import Component
from ftengine.errors import FtengineError
from ftengine.plugins.discovery import GROUP
from ftengine.plugins.distributions import BLOCK_VARIABLE, BUILT_IN, Offer, offers
from ftengine.plugins.offered import written
from ftengine.plugins.registry import KINDS, RECIPE_KEYS


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
    frames = list(traceback.walk_tb(error.__traceback__))
    root = _root(type(component).__module__)
    own = next((x for x in frames[::-1] if _root(x[0].f_globals.get("__name__")) == root), None)
    place = _line_of(*own) if own else _written(component, error) or _line_of(*frames[-1])
    text = str(error) if isinstance(error, FtengineError) else f"{type(error).__name__}: {error}"
    return f"{text.rstrip(': .')} ({place})"


def without(component: Component) -> str:
    """Say how to do without a component that no recipe names, " Run …"; "" for others: they can be left out of one."""
    owner = _owner(type(component).__module__, _owners())
    if _kind(component) in RECIPE_KEYS or owner is None or owner.distribution == BUILT_IN:
        return ""
    return f" Run with {BLOCK_VARIABLE}={owner.distribution} to do without it."


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


def _root(module: str | None) -> str:
    return (module or "").partition(".")[0]
