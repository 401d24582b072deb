"""What says that code is what it was: for what is kept of its results."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

OWN = "ftengine"


def code_of(classes: Iterable[type]) -> list[list[object]] | None:
    """Return path, size and time of every file of the packages that classes lie in, and of ftengine.

    A version does not change while its author works, and a class is seldom the only code that it runs.

    Returns:
        None where a class lies in no package, as in a notebook, or in a function: nothing tells then whether it is what
        it was.
    """
    packages = {OWN}
    for cls in classes:
        packages.add(package_of(cls))
        if "<locals>" in cls.__qualname__:
            return None
    found: list[list[object]] = []
    for name in sorted(packages):
        folders = [Path(folder) for folder in getattr(sys.modules.get(name), "__path__", ())]
        if not folders:
            return None
        for folder in folders:
            for file in sorted(chain(folder.rglob("*.py"), folder.rglob("*.so"))):
                facts = file.stat()
                found.append([f"{name}/{file.relative_to(folder)}", facts.st_size, facts.st_mtime_ns])
    return found


def package_of(cls: type) -> str:
    """Return the outermost package, or the module, that a class lies in."""
    return cls.__module__.partition(".")[0]
