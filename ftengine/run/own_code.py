"""Keys for cached results of ftengine's own code.

Results of other code are not cached: it may depend on more than its own file (a helper in another package, a list of
words, an environment variable), so nothing shows whether it would do the same again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

from ftengine import PACKAGES
from ftengine.identity import file_hash
from ftengine.plugins.distributions import BUILT_IN, normalised, offers
from ftengine.run.environment import required_versions, versions

GROUP = "ftengine"
"""The entry-point group of plugins."""
LIBRARIES = frozenset({*PACKAGES, *sys.stdlib_module_names, "pydantic"})
"""Packages whose versions identify their code."""


def code_of(classes: Iterable[type]) -> dict[str, Any] | None:
    """Return a key for the code of classes of ftengine or of libraries that it requires.

    Returns:
        A hash of every file of ftengine's packages (which may change without a new version), and the versions of the
        libraries; None if a class, or a base of it, comes from other code.
    """
    every = {base for cls in classes for base in cls.__mro__}
    if any("<locals>" in cls.__qualname__ or not _is_known(package_of(cls)) for cls in every):
        return None
    files: dict[str, str] = {}
    for name in sorted(own_packages()):
        (folder,) = import_module(name).__path__
        files |= {f"{name}/{file[len(folder) + 1 :]}": file_hash(file) for file in _files(folder)}
    return {"files": files, "versions": versions(), "required": required_versions(BUILT_IN)}


def package_of(cls: type) -> str:
    """Return the top-level package or module of a class."""
    return cls.__module__.partition(".")[0]


@cache
def own_packages() -> frozenset[str]:
    """Return the packages of ftengine and of the plugins in its distribution."""
    own = (offer.entry_point.module for offer in offers(GROUP) if normalised(offer.distribution) == BUILT_IN)
    return frozenset({BUILT_IN, *(module.partition(".")[0] for module in own)})


@cache
def _is_known(package: str) -> bool:
    if package in own_packages() or package in LIBRARIES:
        return True
    return normalised(package) in map(normalised, required_versions(BUILT_IN))


def _files(folder: str) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.join(path, file) for file in sorted(files) if file.endswith((".py", ".so")))
