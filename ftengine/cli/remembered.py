"""What plugins answered when they were asked for their components, in the cache's folder, for the shell's completion.

Everything here is hints, and a cache that cannot be read or written is none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine import __version__
from ftengine.errors import RunError
from ftengine.plugins.distributions import offers

if TYPE_CHECKING:
    from ftengine.plugins.registry import Entry

CACHE_VARIABLE = "FTENGINE_CACHE"
GROUP = "ftengine"
"""The folder of caches and the group of plugins, named again here: what defines them takes too long to import."""


def remember(entries: Iterable[Entry]) -> None:
    """Keep what plugins offer, for the next completion."""
    from ftengine.plugins.registry import RECIPE_KEYS
    from ftengine.run.directory import RunDirectory

    components = [{"kind": e.kind, "name": e.name, "summary": e.summary} for e in entries]
    cache = RunDirectory(_file().parent)
    with suppress(RunError):  # a full disk, a home that cannot be written
        cache.create()
        cache.write_json(_file().name, {"of": _installed(), "components": components, "keys": RECIPE_KEYS})


def remembered() -> dict[str, Any] | None:
    """Return what plugins offer, if the cache is of what is installed now."""
    with suppress(OSError, ValueError):  # none yet, or damaged
        known = json.loads(_file().read_text(encoding="utf-8"))
        if isinstance(known, dict) and known.get("of") == _installed():
            return known
    return None


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
