"""What installed distributions offer under an entry-point group, found without importing any of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import metadata

BUILT_IN = "ftengine"
"""The distribution whose components need no origin beside their names, and without which nothing works."""

BLOCK_VARIABLE = "FTENGINE_BLOCK_PLUGINS"
"""Names distributions, separated by commas, whose plugins and commands are not loaded."""


@dataclass(frozen=True)
class Offer:
    """An entry point, the distribution that has it, and whether the user blocks that."""

    distribution: str
    version: str
    entry_point: metadata.EntryPoint
    blocked: bool

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def offers(group: str) -> list[Offer]:
    """Return a group's entry points by distribution and name."""
    blocked = {_normal(name) for name in os.environ.get(BLOCK_VARIABLE, "").split(",")}
    found: dict[tuple[str, str], Offer] = {}
    for entry_point in metadata.entry_points(group=group):
        dist = entry_point.dist
        name, version = (dist.name, dist.version) if dist else ("unknown", "unversioned")
        # An editable installation may be listed twice on sys.path.
        found.setdefault((name, entry_point.name), Offer(name, version, entry_point, _normal(name) in blocked))
    return [found[key] for key in sorted(found)]


def instead(*distributions: str) -> str:
    """Say what to do about what is broken in distributions; ftengine itself cannot be left out."""
    names = ",".join(sorted({name for name in distributions if _normal(name) != BUILT_IN}))
    blocked = f"Repair or uninstall it, or run with {BLOCK_VARIABLE}={names}." if names else ""
    own = any(_normal(name) == BUILT_IN for name in distributions)
    again = f"Install {BUILT_IN} again: its own files are damaged." if own else ""
    return " ".join(filter(None, (again, blocked)))


def _normal(name: str) -> str:
    """Return a distribution's name as the packaging specification normalises it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
