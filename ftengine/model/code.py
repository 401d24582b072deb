"""Whether code is what it was: for what is kept of its results, and for the identity of a model that brings its own.

Files are known by what they hold. A version says nothing of code that its author works on.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine import PACKAGES

if TYPE_CHECKING:
    from torch import nn

OWN = "ftengine"

RECORDED = {*PACKAGES, *sys.stdlib_module_names, "pydantic"} - {OWN}
"""Packages whose files are not looked at."""


def code_of(classes: Iterable[type]) -> dict[str, str] | None:
    """Return a hash of every file of the packages that classes and their bases lie in, and of ftengine's.

    A class is seldom the only code that it runs. Packages whose versions are recorded are left out.

    Returns:
        None where a class lies in no package, as in a notebook, or in a function: nothing tells then whether it is what
        it was.
    """
    every = {base for cls in classes for base in cls.__mro__}
    if any("<locals>" in cls.__qualname__ for cls in every):
        return None
    hashes: dict[str, str] = {}
    for name in sorted({OWN} | {package_of(cls) for cls in every} - RECORDED):
        folders = list(getattr(sys.modules.get(name), "__path__", ()))
        if not folders:
            return None
        for folder in folders:
            hashes |= {f"{name}/{file[len(folder) + 1 :]}": _hash(file) for file in _files(folder)}
    return hashes


def package_of(cls: type) -> str:
    """Return the outermost package, or the module, that a class lies in."""
    return cls.__module__.partition(".")[0]


def fingerprint_code(module: str) -> dict[str, str]:
    """Return a hash of each Python file of the package that an imported module lies in, else of its own file.

    What is installed has a version, and is left out.
    """
    own: Any = sys.modules.get(module)
    package: Any = sys.modules.get(getattr(own, "__package__", None) or "")
    files: dict[Path, str] = {}
    if getattr(package, "__file__", None):
        folder = Path(package.__file__).parent
        files = {file: file.relative_to(folder.parent).as_posix() for file in folder.rglob("*.py")}
    elif getattr(own, "__file__", None):
        files = {Path(own.__file__): Path(own.__file__).name}
    return {name: _hash(file) for file, name in sorted(files.items()) if not _is_installed(file)}


def fingerprint_code_of(module: nn.Module) -> dict[str, str]:
    """Return a hash of each Python file that came with a model: code of no installed package, or of its hub."""
    files = {getattr(sys.modules.get(type(part).__module__), "__file__", None) for part in module.modules()}
    own = {Path(file) for file in files if file is not None and not _is_installed(Path(file))}
    # A class of the hub uses functions of the files beside it.
    own |= {other for file in own if "transformers_modules" in file.parts for other in file.parent.glob("*.py")}
    return fingerprint_files(file for file in sorted(own) if file.is_file())


def fingerprint_files(files: Iterable[Path]) -> dict[str, str]:
    """Return a hash of each file by its name; of several of one name, which are told together."""
    hashes: dict[str, str] = {}
    for file in files:
        hashes[file.name] = "+".join([*([hashes[file.name]] if file.name in hashes else []), _hash(file)])
    return hashes


def _is_installed(file: Path) -> bool:
    """Say whether a file is of Python or of an installed distribution."""
    standard = Path(sysconfig.get_paths()["stdlib"]) in file.parents
    return standard or bool({"site-packages", "dist-packages"} & set(file.parts))


def _files(folder: str) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.join(path, one) for one in sorted(files) if one.endswith((".py", ".so")))


def _hash(file: str | Path) -> str:
    facts = os.stat(file)
    return _hash_of_content(str(file), facts.st_size, facts.st_mtime_ns)


@cache
def _hash_of_content(file: str, size: int, changed: int) -> str:
    """Hash a file, once for each size and time that it has."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:32]
