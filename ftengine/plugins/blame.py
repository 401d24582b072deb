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

    It is that of the innermost frame in a plugin's module, or whose component the last frame of all has called and
    cannot go on with what came back. ftengine's own components count as the engine.
    """
    owners = {o.entry_point.module.partition(".")[0]: o for o in offers(GROUP) if o.distribution != BUILT_IN}
    frames = list(traceback.walk_tb(error.__traceback__))[::-1]
    if not owners or not frames:
        return ""
    own = [(frame, line) for frame, line in frames if _root(frame.f_globals.get("__name__")) in owners]
    frame, line = (own or frames)[0]
    components = [one for found, _ in (frames if own else frames[:1]) for one in _components(found, owners)]
    if own:
        owner = owners[_root(frame.f_globals["__name__"])]
        components = [one for one in components if owners[_root(type(one).__module__)] is owner]
    elif components:
        owner = owners[_root(type(components[0]).__module__)]
    else:
        return ""
    told, instead = f"plugin {owner.entry_point.name!r}", ""
    if components:
        kind = next(kind for kind, (base, _) in KINDS.items() if isinstance(components[0], base))
        told = f"{kind} {components[0].name!r}"
        # What no recipe names is used in every run, and the way out is to leave the distribution out.
        instead = "" if kind in RECIPE_KEYS else f", or with {BLOCK_VARIABLE}={owner.distribution} to do without it"
    cause, place = f"{type(error).__name__}: {error}".rstrip(": "), f"{Path(frame.f_code.co_filename).name}:{line}"
    return f"{told} of {owner} failed: {cause} ({place}; run with --debug for the traceback{instead})"


def _components(frame: FrameType, owners: dict[str, Offer]) -> list[Component]:
    """Return the plugins' components among a frame's variables."""
    found = (value for value in frame.f_locals.values() if isinstance(value, Component))
    return [one for one in found if _root(type(one).__module__) in owners]


def _root(module: str | None) -> str:
    return (module or "").partition(".")[0]
