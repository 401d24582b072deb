"""The cache of computed results: private to a user, complete entries only, and bounded in size.

It holds rows of parsed files, features of encoded rows, findings of ftengine's audits, outputs of base models and
comparisons of fast paths. The name of an entry is a hash of all that it depends on (`cache_key`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ftengine.errors import DataError
from ftengine.identity.files import file_hash
from ftengine.identity.values import json_hash
from ftengine.text import size_in

CACHE_VARIABLE = "FTENGINE_CACHE"
SIZE_VARIABLE = "FTENGINE_CACHE_SIZE"
DEFAULT_SIZE = "20GB"
FORMATS = {"audits": 3, "base": 6, "features": 4, "paths": 2, "probes": 1, "rows": 8}
"""What is cached, each with a number that is raised when it would be stored in another way."""
ROWS, FACTS = "rows.arrow", "facts.json"
"""The files of an entry; the facts hold the hash of what else is there."""
PARTIAL = ".tmp"

_IN_USE = 3600
"""Seconds since its last use before an entry may be removed to make room: another process may be about to open it."""
_ABANDONED = 86400
"""Seconds after which what is half-written has no writer any more."""
_added: dict[Path, float] = {}
"""Bytes that this process has added to a folder since it last made room there."""
_temporary: list[tempfile.TemporaryDirectory[str]] = []
"""Folders that are removed when this process ends."""


def cache_key(kind: str, depends: Any) -> str:
    """Return the name of an entry of a kind of `FORMATS`, from all that it depends on (JSON values)."""
    return f"{kind}-{json_hash([FORMATS[kind], depends])}"


def cache_folder() -> Path:
    """Return the folder of the cache, which may not exist yet."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ftengine").expanduser() / "data"


def make_private(folder: Path) -> None:
    """Make the folder, accessible only to this user (DataError: another user owns it; OSError: it cannot be made).

    Rows are copies of files that may be private, and the content is used for training without further checks.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise DataError(
            f"the cache {folder} belongs to another user, who could change the rows in it. Name a folder of your own "
            f"with {CACHE_VARIABLE}."
        )
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def entry_of(key: str, what: str, write: Callable[[Path], dict[str, Any]]) -> Path:
    """Return the entry under a key, created if there is none (DataError: the cache cannot be used).

    An entry is a folder that is written under another name and renamed, so that it is always complete, and processes
    that create the same entry do not disturb each other. A damaged entry is created again.

    Args:
        what: name of the content, for messages.
        write: writes the file `ROWS` into a folder and returns facts about it.
    """
    folder, limit = cache_folder(), wanted_size()
    entry = folder / key
    try:
        make_private(folder)
        if is_whole(entry):
            return entry
        with tempfile.TemporaryDirectory(prefix=f"{key}-", suffix=PARTIAL, dir=folder) as temporary:
            part = Path(temporary, "entry")
            part.mkdir()
            facts = write(part)
            facts["hash"] = file_hash(part / ROWS)
            (part / FACTS).write_text(json.dumps(facts), encoding="utf-8")
            try:
                part.rename(entry)
            except OSError:
                if not entry.is_dir():  # it is when another process was faster
                    raise
        _added[folder] = _added.get(folder, limit) + _size_of(entry)
        if _added[folder] > limit / 100:  # a look at every entry, of which there may be thousands
            make_room(folder, entry, limit)
            _added[folder] = 0
    except OSError as error:
        raise _no_room(what, folder, error) from error
    return entry


def _no_room(what: str, folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot keep {what} in the cache {folder}: {error.strerror or error}. Make room there, or name another "
        f"folder with {CACHE_VARIABLE}."
    )


def temporary_entry(what: str, write: Callable[[Path], dict[str, Any]]) -> Path:
    """Return an entry for this process alone, which is deleted with it; arguments and errors as `entry_of`."""
    folder = cache_folder()
    try:
        make_private(folder)
        own = tempfile.TemporaryDirectory(suffix=PARTIAL, dir=folder)
        entry = Path(own.name)
        try:
            (entry / FACTS).write_text(json.dumps(write(entry)), encoding="utf-8")
        except BaseException:
            own.cleanup()
            raise
    except OSError as error:
        raise _no_room(what, folder, error) from error
    _temporary.append(own)
    return entry


def cached_entry(key: str) -> Path | None:
    """Return the entry under a key; None if there is none (DataError: the folder is another user's)."""
    folder = cache_folder()
    if not folder.is_dir():
        return None
    make_private(folder)
    return folder / key if is_whole(folder / key) else None


def cached_text(key: str) -> str | None:
    """Return the text cached under a key; None if there is none, or if the folder is another user's."""
    try:
        entry = cached_entry(key)
    except DataError:
        return None
    return None if entry is None else (entry / ROWS).read_text(encoding="utf-8")


def keep_text(key: str, what: str, text: str) -> None:
    """Cache a text; without disk space nothing is stored."""

    def write(folder: Path) -> dict[str, Any]:
        (folder / ROWS).write_text(text, encoding="utf-8")
        return {}

    with suppress(DataError):
        entry_of(key, what, write)


def is_whole(entry: Path) -> bool:
    """Return whether an entry is complete; a damaged one is removed."""
    if not entry.is_dir():
        return False
    with suppress(OSError, ValueError, TypeError, KeyError):
        if json.loads((entry / FACTS).read_text(encoding="utf-8"))["hash"] == file_hash(entry / ROWS):
            os.utime(entry)  # so that the entries used last are the last to go
            return True
    shutil.rmtree(entry, ignore_errors=True)
    return False


def make_room(folder: Path, keep: Path, limit: float) -> None:
    """Remove leftovers of killed processes, then the least recently used entries but not `keep`, to `limit` bytes."""
    now = time.time()
    for left in folder.glob(f"*{PARTIAL}"):
        with suppress(OSError):
            if now - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left)
    by_use = sorted(entries(folder), key=lambda entry: entry[1])
    total = sum(size for _, _, size in by_use)
    for entry, used, size in by_use:
        if total > limit and entry != keep and now - used > _IN_USE:
            shutil.rmtree(entry, ignore_errors=True)
            total -= size


def wanted_size() -> float:
    """Return the size limit of the cache in bytes (InputError: FTENGINE_CACHE_SIZE is no size)."""
    return size_in(SIZE_VARIABLE, DEFAULT_SIZE)


def entries(folder: Path) -> Iterator[tuple[Path, float, int]]:
    """Yield each entry, the time of its last use (seconds since 1970) and its bytes."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and entry.suffix != PARTIAL:
            with suppress(OSError):  # another process removes it just now
                yield entry, entry.stat().st_mtime, _size_of(entry)


def _size_of(entry: Path) -> int:
    """Return the bytes of an entry's files."""
    return sum(file.stat().st_size for file in entry.iterdir())


def usage() -> dict[str, Any]:
    """Return the cache's `folder`, `entries`, their `bytes`, and the `limit` in bytes."""
    folder = cache_folder()
    sizes = [size for _, _, size in entries(folder)]
    return {"folder": str(folder), "entries": len(sizes), "bytes": sum(sizes), "limit": int(wanted_size())}


def clear() -> None:
    """Remove all cached rows (OSError: they cannot be removed)."""
    folder = cache_folder()
    if folder.is_dir():
        shutil.rmtree(folder)
