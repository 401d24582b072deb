"""Whose code it was that raised: the plugin in a traceback."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import FrameType

from ftengine.api import Component
from ftengine.plugins.discovery import GROUP
from ftengine.plugins.distributions import BLOCK_VARIABLE, Offer, offers
from ftengine.plugins.registry import BUILT_IN, KINDS, RECIPE_KEYS


def blame(error: BaseException) -> str:
    """Say of an unexpected error which installed plugin it comes from, what, and where; "" where it is from none.

    It is that of the innermost frame in a plugin's module, or else the one whose component the innermost function of
    all has called, and cannot go on with what came back. ftengine's own components count as the engine.
    """
    owners = {o.entry_point.module.partition(".")[0]: o for o in offers(GROUP) if o.distribution != BUILT_IN}
    frames = list(traceback.walk_tb(error.__traceback__))[::-1]
    own = [(frame, line) for frame, line in frames if _root(frame.f_globals.get("__name__")) in owners]
    looked_at = [frame for frame, _ in frames] if own else _innermost_function([frame for frame, _ in frames])
    locals_ = (value for frame in looked_at for value in frame.f_locals.values())
    components = [one for one in locals_ if isinstance(one, Component) and _root(type(one).__module__) in owners]
    if not own and not components:
        return ""
    frame, line = (own or frames)[0]
    owner = owners[_root(frame.f_globals["__name__"] if own else type(components[0]).__module__)]
    component = next((one for one in components if owners[_root(type(one).__module__)] is owner), None)
    cause, place = f"{type(error).__name__}: {error}".rstrip(": "), f"{Path(frame.f_code.co_filename).name}:{line}"
    told, instead = _told(component, owner)
    return f"{told} of {owner} failed: {cause} ({place}; run with --debug for the traceback{instead})"


def _innermost_function(frames: list[FrameType]) -> list[FrameType]:
    """Return the frames of the innermost function: its comprehensions, which have frames of their own, and itself."""
    named = (i for i, frame in enumerate(frames) if not frame.f_code.co_name.startswith("<"))
    return frames[: next(named, len(frames)) + 1]


def _told(component: Component | None, owner: Offer) -> tuple[str, str]:
    """Name a component, or its plugin where none is known, and say how to go on without it where that is possible."""
    if component is None:
        return f"plugin {owner.entry_point.name!r}", ""
    kind = next(kind for kind, (base, _) in KINDS.items() if isinstance(component, base))
    # What no recipe names is used in every run, and the way out is to leave the distribution out.
    instead = "" if kind in RECIPE_KEYS else f", or with {BLOCK_VARIABLE}={owner.distribution} to do without it"
    return f"{kind} {component.name!r}", instead


def _root(module: str | None) -> str:
    return (module or "").partition(".")[0]
