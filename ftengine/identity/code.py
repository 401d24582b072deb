"""Fingerprints of code, for models that bring their own.

Files are identified by their content: a version does not identify code under development.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine.identity.files import file_hash

if TYPE_CHECKING:
    from torch import nn


def fingerprint_code(module: str) -> dict[str, str]:
    """Return a hash of each Python file of an imported module's package, else of its own file.

    Installed code is left out, as it has a version.
    """
    own: Any = sys.modules.get(module)
    package: Any = sys.modules.get(getattr(own, "__package__", None) or "")
    files: dict[Path, str] = {}
    if getattr(package, "__file__", None):
        folder = Path(package.__file__).parent
        files = {file: file.relative_to(folder.parent).as_posix() for file in folder.rglob("*.py")}
    elif getattr(own, "__file__", None):
        files = {Path(own.__file__): Path(own.__file__).name}
    return {name: file_hash(file) for file, name in sorted(files.items()) if not _is_installed(file)}


def fingerprint_code_of(module: nn.Module) -> dict[str, str]:
    """Return a hash of each Python file that came with a model: from no installed package, or from the hub."""
    files = {getattr(sys.modules.get(type(part).__module__), "__file__", None) for part in module.modules()}
    own = {Path(file) for file in files if file is not None and not _is_installed(Path(file))}
    # A class of the hub uses functions of the files beside it.
    own |= {other for file in own if "transformers_modules" in file.parts for other in file.parent.glob("*.py")}
    return fingerprint_files(file for file in sorted(own) if file.is_file())


def fingerprint_files(files: Iterable[Path]) -> dict[str, str]:
    """Return a hash of each file by its name; files with one name share a hash."""
    hashes: dict[str, str] = {}
    for file in files:
        hashes[file.name] = "+".join([*([hashes[file.name]] if file.name in hashes else []), file_hash(file)])
    return hashes


def _is_installed(file: Path) -> bool:
    """Return whether a file belongs to Python or to an installed distribution."""
    standard = Path(sysconfig.get_paths()["stdlib"]) in file.parents
    return standard or bool({"site-packages", "dist-packages"} & set(file.parts))
