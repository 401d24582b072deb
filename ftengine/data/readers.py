"""Choice of the reader for a source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftengine.api import FileReader, Reader
from ftengine.data.files import GZIP
from ftengine.errors import DataError
from ftengine.plugins.registry import AUTO, Factory, Registry

HUB = "a data set of the hub (owner/name[/config][:split])"

SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")


def choose_reader(
    source: str, registry: Registry, spec: Mapping[str, Any], *, shown: str, lenient: bool = False
) -> Factory:
    """Return the reader of a path: the one that `data.reader` names, or the first by name that accepts it.

    Args:
        source: an existing path.
        spec: the component as in a recipe; options of "auto" go to the reader that is chosen.
        shown: the name of the source in the recipe.
        lenient: take another reader if the named one does not accept the source.

    Raises:
        UnknownName, RecipeError: the named reader does not exist, or its options are wrong.
        DataError: no reader accepts the source.
    """
    if spec["name"] != AUTO and not lenient:
        return registry.factory("reader", spec, "data.reader")
    if (factory := accepting(source, registry, spec)) is None:
        suffix = Path(source).suffix.lower()
        ending = f"files with the suffix {suffix!r} are not read"
        ending += ". Save the sheet as CSV UTF-8" if suffix in SPREADSHEETS else ""
        problem = ending if Path(source).is_file() else "no reader accepts it"
        raise DataError(
            f"{shown}: {problem}. {data_is(registry)}. For another suffix, name data.reader.{registry.blocked()}"
        )
    return factory


def accepting(source: str, registry: Registry, spec: Mapping[str, Any]) -> Factory | None:
    """Return the named reader if it accepts a source, else the first (by name) that does, or None."""
    if spec["name"] != AUTO:
        named = registry.factory("reader", spec, "data.reader")
        if named().accepts(source):
            return named
        spec = {"name": AUTO}
    readers = ((entry.name, entry.cls) for entry in registry.buildable("reader") if not entry.cls.traits.by_name)
    name = next((name for name, cls in readers if isinstance(reader := cls(), Reader) and reader.accepts(source)), None)
    return None if name is None else registry.factory("reader", {**spec, "name": name}, "data.reader")


def suffixes(registry: Registry) -> tuple[str, ...]:
    """Return the suffixes of files that the readers accept."""
    classes = [entry.cls for entry in registry.entries("reader")]
    return tuple(dict.fromkeys(end for cls in classes if issubclass(cls, FileReader) for end in cls.suffixes))


def _is_other(reader: type) -> bool:
    return not (issubclass(reader, FileReader) or reader.traits.by_name)  # type: ignore[attr-defined]


def data_is(registry: Registry) -> str:
    """Return a clause that lists the kinds of data that can be read."""
    others = [entry.name for entry in registry.entries("reader") if _is_other(entry.cls)]
    plain = [suffix for suffix in suffixes(registry) if not suffix.endswith(GZIP)]
    packed = f", or packed as {GZIP}" if len(plain) < len(suffixes(registry)) else ""
    more = f", what reader {' or '.join(others)} accepts" if others else ""
    return f"Data is one file ({' '.join(plain)}{packed}){more}, or {HUB}"
