"""What the shell completes besides commands and options: names of kinds, components and distributions.

Asking plugins for their components imports torch, so what they answered is remembered in the cache's folder, under what
is installed. Everything here is hints, and a cache that cannot be read or written is none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import Context, Parameter
from click.shell_completion import CompletionItem

from ftengine import __version__
from ftengine.cli.external import GROUP as COMMANDS
from ftengine.errors import RunError
from ftengine.plugins.distributions import offers

if TYPE_CHECKING:
    from ftengine.plugins.registry import Entry

CACHE_VARIABLE = "FTENGINE_CACHE"
GROUP = "ftengine"
"""The folder of caches and the group of plugins, named again here: what defines them takes too long to import."""


def component_names(kind: str = "") -> Callable[[Context, Parameter, str], list[CompletionItem]]:
    """Return what completes names of components, of one kind or of the one that the option `--kind` names."""

    def complete(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
        wanted = kind or ctx.params.get("kind")
        found = [item for item in _known()["components"] if wanted in (None, item["kind"])]
        named = [item for item in found if item["name"].startswith(incomplete)]
        return [CompletionItem(item["name"], help=item["summary"]) for item in named]

    return complete


def overrides(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete `KEY=NAME` where a key of the recipe holds components."""
    known = _known()
    pairs = [(f"{known['keys'][c['kind']]}={c['name']}", c) for c in known["components"] if c["kind"] in known["keys"]]
    return [CompletionItem(pair, help=c["summary"]) for pair, c in pairs if pair.startswith(incomplete)]


def distribution_names(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete installed distributions that offer something, and folders."""
    names = sorted({offer.distribution for group in (GROUP, COMMANDS) for offer in offers(group)})
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="dir")]


def remember(entries: Iterable[Entry]) -> None:
    """Keep what plugins offer, for the next completion."""
    from ftengine.plugins.registry import RECIPE_KEYS
    from ftengine.run.directory import RunDirectory

    components = [{"kind": e.kind, "name": e.name, "summary": e.summary} for e in entries]
    cache = RunDirectory(_file().parent)
    with suppress(RunError):  # a full disk, a home that cannot be written
        cache.create()
        cache.write_json(_file().name, {"of": _installed(), "components": components, "keys": RECIPE_KEYS})


def _known() -> dict[str, Any]:
    """Return what plugins offer, from the cache if that is of what is installed now."""
    with suppress(OSError, ValueError):  # none yet, or damaged
        known = json.loads(_file().read_text(encoding="utf-8"))
        if isinstance(known, dict) and known.get("of") == _installed():
            return known
    from ftengine.cli.components import installed

    installed()  # remembers what it finds
    with suppress(OSError, ValueError):
        return json.loads(_file().read_text(encoding="utf-8"))
    return {"components": [], "keys": {}}


def _installed() -> str:
    """Return a number that changes with what is installed, blocked, or written anew in an editable installation."""
    found = [__version__]
    for offer in offers(GROUP):
        try:
            spec = find_spec(offer.entry_point.module.partition(".")[0])
            changed = os.stat(spec.origin).st_mtime_ns if spec and spec.origin else 0
        except (ImportError, ValueError, OSError):
            changed = 0
        found.append(f"{offer} {offer.entry_point.value} {offer.blocked} {changed}")
    return blake2b("\n".join(found).encode(), digest_size=16).hexdigest()


def _file() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ftengine").expanduser() / "names.json"
