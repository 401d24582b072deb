"""What says that code is what it was: for what is kept of its results."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

OWN = "ftengine"

PACKAGES = (
    OWN,
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "datasets",
    "safetensors",
    "peft",
    "pluggy",
    "numpy",
)
"""Packages whose versions a run records (`ftengine.run.environment.versions`)."""

KNOWN = {*PACKAGES, *sys.stdlib_module_names, "pydantic"} - {OWN}
"""Packages whose files are not looked at."""


def code_of(classes: Iterable[type]) -> list[list[object]] | None:
    """Return path, size and time of every file of the packages that classes and their bases lie in, and of ftengine.

    A version does not change while its author works, and a class is seldom the only code that it runs. Packages that
    `versions` tells of are left out.

    Returns:
        None where a class lies in no package, as in a notebook, or in a function: nothing tells then whether it is what
        it was.
    """
    every = {base for cls in classes for base in cls.__mro__}
    if any("<locals>" in cls.__qualname__ for cls in every):
        return None
    found: list[list[object]] = []
    for name in sorted({OWN} | {package_of(cls) for cls in every} - KNOWN):
        folders = list(getattr(sys.modules.get(name), "__path__", ()))
        if not folders:
            return None
        for folder in folders:
            for path, _, files in os.walk(folder):
                for file in (os.path.join(path, one) for one in files if one.endswith((".py", ".so"))):
                    facts = os.stat(file)
                    found.append([f"{name}/{file[len(folder) + 1 :]}", facts.st_size, facts.st_mtime_ns])
    return sorted(found)


def package_of(cls: type) -> str:
    """Return the outermost package, or the module, that a class lies in."""
    return cls.__module__.partition(".")[0]
