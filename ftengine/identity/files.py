"""Hashes of files' content, cached while a file's state does not change."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path


def file_hash(file: str | Path) -> str:
    """Return the SHA-256 of a file (OSError: it cannot be read)."""
    state = os.stat(file)
    return _file_hash(str(file), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(1 << 14)
def _file_hash(file: str, *state: int) -> str:
    """Return the hash of a file; `state` changes when the file is written."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while part := opened.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder, by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): file_hash(file) for file in files}


def file_states(source: Path) -> list[tuple[str, int, int]]:
    """Return the name, size and time (ns) of a file or of each file in a folder; [] if there is nothing."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    states = [(file.as_posix(), file.stat()) for file in files]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]
