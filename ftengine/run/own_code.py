"""Whether a computation is of ftengine's own code, and which code that is: for what is kept of its outcome.

What other code runs and reads beside its own file (a helper of another package, a list of words, a variable of the
environment) is not known, so nothing tells whether it would do the same again.
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
"""The entry points of plugins."""
LIBRARIES = frozenset({*PACKAGES, *sys.stdlib_module_names, "pydantic"})
"""Packages that are known by their versions."""


def code_of(classes: Iterable[type]) -> dict[str, Any] | None:
    """Return what classes of ftengine's own, or of libraries that it asks for, run: for keys of what is kept.

    Returns:
        A hash of every file of ftengine's packages, whose authors work on it without a new version, and the versions of
        the libraries; None where a class, or a base of it, is of other code.
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
    """Return the outermost package, or the module, that a class lies in."""
    return cls.__module__.partition(".")[0]


@cache
def own_packages() -> frozenset[str]:
    """Return the packages of ftengine and of the plugins that it ships."""
    own = (one.entry_point.module for one in offers(GROUP) if normalised(one.distribution) == BUILT_IN)
    return frozenset({BUILT_IN, *(module.partition(".")[0] for module in own)})


@cache
def _is_known(package: str) -> bool:
    if package in own_packages() or package in LIBRARIES:
        return True
    return normalised(package) in map(normalised, required_versions(BUILT_IN))


def _files(folder: str) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.join(path, one) for one in sorted(files) if one.endswith((".py", ".so")))
