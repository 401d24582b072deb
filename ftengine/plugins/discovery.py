"""Plugin discovery: finds plugins, and records those that fail to load. There is no global registry."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pluggy

from ftengine.errors import PluginError, shown
from ftengine.plugins import hookspecs
from ftengine.plugins.class_validation import raised
from ftengine.plugins.distributions import offers, printing_aside, repair_hint
from ftengine.text import duration

GROUP = "ftengine"
TRACE_VARIABLE = "FTENGINE_TRACE_PLUGINS"

MOST_SECONDS = 2.0
"""Seconds that the import of a plugin may take; hooks should import what is slow."""


@dataclass(frozen=True)
class PluginOrigin:
    """Where a plugin comes from.

    Args:
        name: the entry point's name.
        distribution: name of the installed distribution.
        version: its version.
        target: the entry point's value, `module:object`.
        status: "loaded", "blocked" or "broken".
        cause: why it is broken; "" otherwise.
        source: the folder or address that it was installed from; "" if unknown.
        seconds: time of its import.
        printed: text that it printed to stdout while it was imported.
    """

    name: str
    distribution: str
    version: str
    target: str
    status: str
    cause: str = ""
    source: str = ""
    seconds: float = 0.0
    printed: str = ""

    @property
    def remarks(self) -> list[str]:
        """Sentences on a slow import, or one that prints."""
        remarks, who = [], f"plugin {self.name!r} of {self} ({self.target})"
        if self.seconds > MOST_SECONDS:
            remarks.append(
                f"{who} takes {duration(self.seconds)} to import, which delays every command. Import slow modules "
                "inside its hooks."
            )
        if self.printed:
            remarks.append(f"{who} prints {shown(self.printed)} when it is imported. Remove that output.")
        return remarks

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


class Plugins:
    """The loaded plugins, with the origin of each."""

    def __init__(self, manager: pluggy.PluginManager, origins: dict[str, PluginOrigin]) -> None:
        self.manager = manager
        self.origins = origins

    @property
    def hook(self) -> pluggy.HookRelay:
        return self.manager.hook

    def origin(self, plugin_name: str) -> PluginOrigin:
        """Return the origin of a registered plugin; one registered by hand has no distribution."""
        unknown = PluginOrigin(plugin_name, plugin_name, "unversioned", plugin_name, "loaded")
        return self.origins.get(plugin_name, unknown)

    def broken(self) -> list[PluginOrigin]:
        return [origin for origin in self.origins.values() if origin.status == "broken"]

    def raise_if_broken(self) -> None:
        """Raise an error if a plugin failed to load.

        Raises:
            PluginError: names each broken plugin with version and cause.
        """
        broken = self.broken()
        if broken:
            causes = "; ".join(f"{o.name!r} of {o} ({o.target}): {o.cause}" for o in broken)
            raise PluginError(f"plugin failed to load: {causes}. {repair_hint(*(o.distribution for o in broken))}")


def make_plugin_manager(extra: dict[str, object] | None = None, *, discover: bool = True) -> Plugins:
    """Find and load every plugin of the entry-point group `ftengine`.

    Args:
        extra: further plugin objects by name, for tests and notebooks.
        discover: look at installed distributions; False leaves only `extra`.

    A plugin that cannot be loaded is recorded as broken, so that `plugins list` and `doctor` can report it;
    `Plugins.raise_if_broken` makes it an error. Distributions named (comma-separated) in FTENGINE_BLOCK_PLUGINS are not
    loaded.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    if os.environ.get(TRACE_VARIABLE):
        manager.trace.root.setwriter(lambda text: print(text, end="", file=sys.stderr))
        manager.enable_tracing()
    origins: dict[str, PluginOrigin] = {}
    for offer in offers(GROUP) if discover else ():
        entry_point = offer.entry_point
        key = f"{offer.distribution}:{entry_point.name}"
        began = time.perf_counter()
        with printing_aside() as printed:
            cause = "" if offer.blocked else offer.mismatch
            if not (offer.blocked or cause):
                cause = _register(manager, key, entry_point.load, entry_point.module)
        status = "blocked" if offer.blocked else "broken" if cause else "loaded"
        origins[key] = PluginOrigin(
            entry_point.name,
            offer.distribution,
            offer.version,
            entry_point.value,
            status,
            cause,
            offer.source,
            time.perf_counter() - began,
            printed.getvalue(),
        )
    for name, plugin in (extra or {}).items():
        cause = _register(manager, name, partial(lambda loaded: loaded, plugin), "")
        if cause:
            raise PluginError(f"plugin {name!r} failed to load: {cause}")
    return Plugins(manager, origins)


def _register(manager: pluggy.PluginManager, name: str, load: Callable[[], object], module: str) -> str:
    """Load and register one plugin; return the cause of failure, or ""."""
    try:
        plugin = load()
        manager.register(plugin, name=name)
        hooks = manager.get_hookcallers(plugin) or []
        misspelt = [hook.name for hook in hooks if not hook.has_spec()]
        if misspelt or not hooks:
            manager.unregister(name=name)
            unknown = f"implements a hook that does not exist: {', '.join(misspelt)}"
            return unknown if hooks else "implements no hook; mark its functions with ftengine.hookimpl"
    # Third-party code may raise anything, SystemExit included, which is returned as the cause.
    except (Exception, SystemExit) as error:
        if manager.has_plugin(name):
            manager.unregister(name=name)
        return raised(error, module)
    return ""
