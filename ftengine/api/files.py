"""Paths in rows: which file a value names, seen from the working directory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftengine.errors import DataError

ADDRESS = re.compile(r"(?!.*/\.\.(?:/|\Z))(?:data:[^,]*,|[A-Za-z][A-Za-z0-9+.-]*://)", re.DOTALL)
"""Beginnings of texts that are no paths: of data URLs and of addresses, which stay as they are. With `..` as a part
they could be paths through a folder "data:" or "https:", and are taken for such."""
OF_FILE = re.compile(r"file:/", re.IGNORECASE)
"""Beginning of the address of a file on this machine."""


def beside(value: Any, folder: str | Path, *, inside: bool = False) -> Any:
    """Return a path (a text, or {"path": …}), or a list of paths, relative to the working directory.

    Args:
        folder: the data file's, which relative paths begin in.
        inside: return {"path": …, "outside": folder} for a path that leads out of it, which `require_inside` refuses:
            one whose file, after all links, is not below the folder after its own. So links that lead out (as those of
            a hub's cache to its blobs) are refused; `task.outside_files` opens them. Addresses of files (file:/…) are
            refused too.
    """
    if isinstance(value, list):
        return [beside(item, folder, inside=inside) for item in value]
    if isinstance(value, dict) and isinstance(path := value.get("path"), str) and path and value.get("bytes") is None:
        found = beside(path, folder, inside=inside)
        return found if isinstance(found, dict) else {**value, "path": found}
    if not isinstance(value, str) or not value:
        return value
    if inside and OF_FILE.match(value):
        return {"path": value, "outside": str(folder)}
    if ADDRESS.match(value):
        return value
    path = os.path.join(folder, value)
    if inside and not _is_below(path, folder):
        return {"path": path, "outside": str(folder)}
    return str(Path(path))


def _is_below(path: str, folder: str | Path) -> bool:
    """Return whether a path leads to something in a folder, after all links of both."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # with a null byte, which is no path of any file
        return True


def require_inside(value: Any, where: str) -> None:
    """Raise DataError for a path that `beside` found outside of the data file's folder; `where` begins the message."""
    if isinstance(value, Mapping) and value.get("bytes") is None and "outside" in value:
        path = str(value.get("path"))
        if OF_FILE.match(path):
            raise DataError(f"{where}: {path!r} is an address. Write the path of the file in its place.")
        raise DataError(
            f"{where}: {path!r} lies outside of {str(value['outside'])!r}, the folder of the data file. Check where "
            "the rows are from; task.outside_files: true opens such files."
        )
