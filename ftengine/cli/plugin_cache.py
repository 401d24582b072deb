"""A cache of facts about this installation: the listing of components, for lists and completion, and doctor's results.

It saves each command that prints a list the import of every plugin, 3 to 4 s. Facts are valid until a distribution,
blocked plugin, file of a plugin or file of an editable installation changes. Each installation has one file for each
set of environment variables that plugins may read. A cache that cannot be read or written is ignored. This is not
`ftengine.identity.cache`, because importing that takes longer than printing a list.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ftengine import __version__
from ftengine.errors import RunError
from ftengine.plugins.distributions import offers

CACHE_VARIABLE = "FTENGINE_CACHE"
GROUP = "ftengine"
"""The cache's variable and the entry-point group of plugins, repeated here because their modules import slowly."""
PREFIX = "installed-"
INSTALLED = (".dist-info", ".egg-info", ".egg-link", ".pth")
"""Endings of the names that installers give a distribution's files and folders."""
SETTINGS: tuple[str, ...] = ("ACCELERATE_", "ATEN_", "CUDA", "FTENGINE_", "HF_", "KMP_", "LD_", "MKL_", "NVIDIA_")
SETTINGS += ("OMP_", "PYTORCH_", "TORCH", "TRANSFORMERS_")
"""Prefixes of environment variables that plugins and checks may depend on, besides the names of plugins' packages."""
LATER = 60 * 10**9
"""Nanoseconds by which a file's time may be ahead of the clock, as on some network drives."""
MOST_FILES = 20
"""Cache files kept, those of the installations and settings used last."""


def store_facts(facts: Mapping[str, Any], began: int) -> None:
    """Add facts (JSON values by name) to the cache of this installation.

    Args:
        began: time when the caller began to collect them, in ns since 1970; if a file changed since, nothing is stored.
    """
    from ftengine.run.directory import RunDirectory

    watched = {name: time for name in sorted(_files()) if (time := _changed(name)) is not None}
    if any(began < time < began + LATER for name, time in watched.items() if not os.path.isdir(name)):  # bytecode
        return
    stored = _read() or {}
    cache = RunDirectory(_file().parent)
    with suppress(RunError):  # a full disk, a home that cannot be written
        cache.create()
        files = {**stored.get("files", {}), **watched}
        content = {**stored, **facts, "of": _installed(), "files": files}
        cache.write_json(_file().name, {**content, "sum": _sum(content)})
        newest_first = sorted(cache.path.glob(f"{PREFIX}*.json"), key=lambda file: -(_changed(str(file)) or 0))
        for old in newest_first[MOST_FILES:]:
            old.unlink(missing_ok=True)


def cached_fact(name: str) -> Any:
    """Return a fact from the cache if it is still valid, else None."""
    return (_read() or {}).get(name)


def _read() -> dict[str, Any] | None:
    with suppress(OSError, ValueError, AttributeError, KeyError, TypeError):  # none yet, or damaged
        stored = json.loads(_file().read_text(encoding="utf-8"))
        if (
            stored.pop("sum") == _sum(stored)
            and stored.get("of") == _installed()
            and all(_changed(name) == time for name, time in stored["files"].items())
        ):
            return stored
    return None


def _installed() -> str:
    """Return a hash of the installed and blocked distributions."""
    parts = [__version__, sys.version]
    parts += [f"{offer} {offer.entry_point.value} {offer.blocked}" for offer in offers(GROUP)]
    for folder in dict.fromkeys(sys.path):
        with suppress(OSError):  # an archive, or not there
            traces = (entry for entry in os.scandir(folder or ".") if entry.name.endswith(INSTALLED))
            parts += sorted(f"{entry.path} {entry.stat().st_mtime_ns}" for entry in traces)
    return _hash(parts)


def _sum(content: Mapping[str, Any]) -> str:
    """Return a checksum of the content, which shows damage that is still valid JSON."""
    return _hash([json.dumps(content, sort_keys=True)])


def _hash(parts: Iterable[str]) -> str:
    return blake2b("\n".join(parts).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _files() -> Iterator[str]:
    """Yield the loaded files of plugins, their packages' folders, and loaded files outside site-packages."""
    written = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    plugins = {offer.entry_point.module.partition(".")[0] for offer in offers(GROUP)}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        ours = name.partition(".")[0] in plugins
        if isinstance(file, str) and (ours or not file.startswith(written)):
            yield file
        if ours:
            yield from getattr(module, "__path__", ())


def _changed(file: str) -> int | None:
    """Return a file's modification time in ns since 1970; None if it does not exist."""
    try:
        return os.stat(file).st_mtime_ns
    except (OSError, ValueError):
        return None


def _file() -> Path:
    """Return the cache file for this installation's path and these settings; two checkouts may have one version."""
    packages = {offer.entry_point.module.partition(".")[0].upper() for offer in offers(GROUP)}
    begins = (*SETTINGS, *(f"{name}_" for name in packages))
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(begins))
    name = f"{PREFIX}{_hash([__file__, sys.prefix, *settings])}.json"
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ftengine").expanduser() / name
