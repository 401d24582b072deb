"""A cache of facts about this installation: what plugins offer, for lists and completion, and what `doctor` found.

It saves the import of every plugin, 3 to 4 s, on each command that prints a list. Facts are valid while no
distribution, blocked plugin, file of a plugin or file of an editable installation changes. Each installation has a
file of its own, and another for each set of environment variables that plugins may read. A cache that cannot be read
or written is ignored. It is apart from `ftengine.identity.cache`, whose imports would take longer than a list.
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
"""The folder of caches and the group of plugins, named again here: what defines them takes too long to import."""
PREFIX = "installed-"
INSTALLED = (".dist-info", ".egg-info", ".egg-link", ".pth")
"""How the names end of what installers leave of a distribution."""
SETTINGS: tuple[str, ...] = ("ACCELERATE_", "ATEN_", "CUDA", "FTENGINE_", "HF_", "KMP_", "LD_", "MKL_", "NVIDIA_")
SETTINGS += ("OMP_", "PYTORCH_", "TORCH", "TRANSFORMERS_")
"""How the names begin of variables that plugins and checks may depend on, besides those of the plugins' packages."""
LATER = 60 * 10**9
"""Nanoseconds that a file's time may lie ahead of the clock, as with some network drives."""
MOST_FILES = 20
"""Files that are kept, of the installations and settings that were asked about last."""


def store_facts(facts: Mapping[str, Any], began: int) -> None:
    """Store facts (JSON values by name) beside those that are stored of this installation.

    Args:
        began: nanoseconds since 1970 when the facts began to be gathered; if a file changed since, nothing is stored.
    """
    from ftengine.run.directory import RunDirectory

    watched = {name: time for name in sorted(_files()) if (time := _changed(name)) is not None}
    if any(began < time < began + LATER for name, time in watched.items() if not os.path.isdir(name)):  # bytecode
        return
    known = _read() or {}
    cache = RunDirectory(_file().parent)
    with suppress(RunError):  # a full disk, a home that cannot be written
        cache.create()
        files = {**known.get("files", {}), **watched}
        content = {**known, **facts, "of": _installed(), "files": files}
        cache.write_json(_file().name, {**content, "sum": _sum(content)})
        newest_first = sorted(cache.path.glob(f"{PREFIX}*.json"), key=lambda file: -(_changed(str(file)) or 0))
        for old in newest_first[MOST_FILES:]:
            old.unlink(missing_ok=True)


def cached_fact(name: str) -> Any:
    """Return a stored fact that is still valid, else None."""
    return (_read() or {}).get(name)


def _read() -> dict[str, Any] | None:
    with suppress(OSError, ValueError, AttributeError, KeyError, TypeError):  # none yet, or damaged
        known = json.loads(_file().read_text(encoding="utf-8"))
        if (
            known.pop("sum") == _sum(known)
            and known.get("of") == _installed()
            and all(_changed(name) == time for name, time in known["files"].items())
        ):
            return known
    return None


def _installed() -> str:
    """Return a number that changes with what is installed or blocked."""
    parts = [__version__, sys.version]
    parts += [f"{offer} {offer.entry_point.value} {offer.blocked}" for offer in offers(GROUP)]
    for folder in dict.fromkeys(sys.path):
        with suppress(OSError):  # an archive, or not there
            traces = (entry for entry in os.scandir(folder or ".") if entry.name.endswith(INSTALLED))
            parts += sorted(f"{entry.path} {entry.stat().st_mtime_ns}" for entry in traces)
    return _hash(parts)


def _sum(content: Mapping[str, Any]) -> str:
    """Return a number by which content that is damaged, and still JSON, is told from what was written."""
    return _hash([json.dumps(content, sort_keys=True)])


def _hash(parts: Iterable[str]) -> str:
    return blake2b("\n".join(parts).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _files() -> Iterator[str]:
    """Yield the loaded files of plugins with their packages' folders, and the files that no installer wrote."""
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
    """Return when a file was written, in nanoseconds since 1970; None where there is none."""
    try:
        return os.stat(file).st_mtime_ns
    except (OSError, ValueError):
        return None


def _file() -> Path:
    """Return the file of this installation (two checkouts have one version) under these settings."""
    packages = {offer.entry_point.module.partition(".")[0].upper() for offer in offers(GROUP)}
    begins = (*SETTINGS, *(f"{name}_" for name in packages))
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(begins))
    name = f"{PREFIX}{_hash([__file__, sys.prefix, *settings])}.json"
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ftengine").expanduser() / name
