"""Entry points of installed distributions, found without importing them."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import metadata
from urllib.parse import unquote, urlsplit

from ftengine import __version__

BUILT_IN = "ftengine"
"""ftengine's own distribution, which messages do not name beside its components, and which cannot be blocked."""

BLOCK_VARIABLE = "FTENGINE_BLOCK_PLUGINS"
"""Environment variable with distributions, separated by commas, whose plugins and commands are not loaded."""


@dataclass(frozen=True)
class Offer:
    """An entry point, its distribution, and whether the user blocks that distribution."""

    distribution: str
    version: str
    entry_point: metadata.EntryPoint
    blocked: bool

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def source(self) -> str:
        """The folder or address that it was installed from; "" if the installer did not record it.

        The record is direct_url.json (https://packaging.python.org/specifications/direct-url), which an installation by
        name from an index does not have.
        """
        dist = self.entry_point.dist
        return _source(dist.read_text("direct_url.json") or "") if dist else ""

    @property
    def mismatch(self) -> str:
        """Why the distribution does not fit the installed version of ftengine; "" if it does."""
        dist = self.entry_point.dist
        if dist is None or normalised(self.distribution) == BUILT_IN:
            return ""
        from packaging.requirements import InvalidRequirement, Requirement

        for text in dist.requires or ():
            with suppress(InvalidRequirement):  # old installers wrote invalid ones
                needed = Requirement(text)
                applies = normalised(needed.name) == BUILT_IN and (not needed.marker or needed.marker.evaluate())
                if applies and not needed.specifier.contains(__version__, prereleases=True):
                    return (
                        f"it requires ftengine{needed.specifier}, but ftengine {__version__} is installed: "
                        "install versions of both that fit together"
                    )
        return ""


def offers(group: str) -> list[Offer]:
    """Return a group's entry points by distribution and name."""
    blocked = {normalised(name) for name in os.environ.get(BLOCK_VARIABLE, "").split(",")}
    by_name: dict[tuple[str, str], Offer] = {}
    for entry_point in metadata.entry_points(group=group):
        dist = entry_point.dist
        name, version = (dist.name, dist.version) if dist else ("unknown", "unversioned")
        # An editable installation may be listed twice on sys.path.
        by_name.setdefault((name, entry_point.name), Offer(name, version, entry_point, normalised(name) in blocked))
    return [by_name[key] for key in sorted(by_name)]


def repair_hint(*distributions: str) -> str:
    """Return what to do about broken distributions: repair, uninstall or block them; ftengine cannot be blocked."""
    names = ",".join(sorted({name for name in distributions if normalised(name) != BUILT_IN}))
    blocked = f"Repair or uninstall it, or run with {BLOCK_VARIABLE}={names}." if names else ""
    own = any(normalised(name) == BUILT_IN for name in distributions)
    again = f"Install {BUILT_IN} again: its own files are damaged." if own else ""
    return " ".join(filter(None, (again, blocked)))


@contextmanager
def printing_aside() -> Iterator[io.StringIO]:
    """Redirect what plugins print to stderr, as stdout is for a command's output, such as JSON."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield printed
    finally:
        sys.stderr.write(printed.getvalue())


def _source(direct_url: str) -> str:
    try:
        noted = json.loads(direct_url)
        url, editable = noted["url"], noted.get("dir_info", {}).get("editable")
    except (ValueError, LookupError, TypeError, AttributeError):  # none, or no such file
        return ""
    parts = urlsplit(url)
    place = unquote(parts.path) if parts.scheme == "file" else url
    commit = noted.get("vcs_info", {}).get("commit_id")
    return f"{place}@{commit}" if commit else f"{place} (editable)" if editable else place


def normalised(name: str) -> str:
    """Return a distribution's name as the packaging specification normalises it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
