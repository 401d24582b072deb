"""Models in the files of an installed Python package."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from ftengine.api import LoadedModel, LoadRequest, ModelLoader, Provenance
from ftengine.errors import SourceError, did_you_mean
from ftengine_builtins.loaders.gguf import GgufLoader
from ftengine_builtins.loaders.transformers import TransformersLoader

SCHEME = "package://"


class PackageLoader(ModelLoader):
    """Load a model from an installed package: package://NAME/PATH, where PATH is a folder or a GGUF file.

    NAME is the package's import name or its name on the package index. The package is not imported.
    """

    name = "package"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._folders, self._files = TransformersLoader(), GgufLoader()

    @staticmethod
    def place(source: str) -> Path:
        """Return the path of package://NAME/PATH (SourceError: it does not exist), for loaders of other formats."""
        return resolve(source)

    def accepts(self, source: str) -> bool:
        """Accept every source that begins with package://."""
        return source.startswith(SCHEME)

    def check_source(self, source: str) -> None:
        """Find the path in the package, then check the model there."""
        path, loader = self._resolved(source)
        loader.check_source(str(path))

    def check_head(self, source: str, head: str) -> None:
        path, loader = self._resolved(source)
        loader.check_head(str(path), head)

    def provenance(self, source: str) -> Provenance:
        path, loader = self._resolved(source)
        return loader.provenance(str(path))

    def load_processor(self, source: str) -> Any:
        path, loader = self._resolved(source)
        return loader.load_processor(str(path))

    def load(self, request: LoadRequest) -> LoadedModel:
        path, loader = self._resolved(request.source)
        return replace(loader.load(replace(request, source=str(path))), source=request.source)

    def load_skeleton(self, request: LoadRequest) -> LoadedModel:
        path, loader = self._resolved(request.source)
        return replace(loader.load_skeleton(replace(request, source=str(path))), source=request.source)

    def _resolved(self, source: str) -> tuple[Path, TransformersLoader | GgufLoader]:
        path = resolve(source)
        if not path.is_dir() and path.suffix.lower() != ".gguf":
            raise SourceError(f"{source!r} is neither a folder with config.json nor a .gguf file. Name one of these.")
        return path, self._folders if path.is_dir() else self._files


def resolve(source: str) -> Path:
    """Return the path of package://NAME/PATH without importing the package (SourceError: it does not exist)."""
    name, _, inside = source.removeprefix(SCHEME).partition("/")
    parts = PurePosixPath(inside).parts
    if not source.startswith(SCHEME) or not name or not parts or "\\" in inside:
        raise SourceError(
            f"{source!r}: write {SCHEME}NAME/PATH, NAME as Python imports the package (dashes are underscores) and "
            f"PATH inside of it, for example {SCHEME}my_models/small.gguf."
        )
    if ".." in parts or PurePosixPath(inside).is_absolute():
        raise SourceError(f"{source!r} leads out of the package; PATH must stay inside it.")
    roots = package_folders(name)
    if existing := next((place for root in roots if (place := root.joinpath(*parts)).exists()), None):
        return existing
    raise SourceError(f"package {name!r} has no {inside!r}. {_present(roots, parts)}")


def package_folders(name: str) -> list[Path]:
    """Return the folders of a package, by its import or distribution name (SourceError: it has none)."""
    modules = [name] if name.isidentifier() and _spec(name) else _modules_of(name)
    if not modules:
        # A misspelt name may be another author's package, so do not propose to install it if a similar one exists.
        near = did_you_mean(name, metadata.packages_distributions())
        hint = near or f" Install it: pip install {name.replace('_', '-')}."
        raise SourceError(f"package {name!r} is not installed.{hint}")
    places = (place for module in modules for place in _spec(module).submodule_search_locations or ())
    folders = [Path(place) for place in places if Path(place).is_dir()]
    if not folders:
        raise SourceError(f"package {name!r} is a single module or an archive, not a folder. Choose another package.")
    return folders


def _spec(module: str) -> Any:
    # find_spec runs no code of a package for a name without dots. A module run as a script has no spec.
    try:
        return importlib.util.find_spec(module)
    except ValueError:
        return None


def _modules_of(name: str) -> list[str]:
    """Return the top-level modules of an installed distribution."""
    try:
        distribution = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        return []
    tops = {file.parts[0] for file in distribution.files or [] if len(file.parts) > 1 and file.suffix == ".py"}
    return sorted(top for top in tops | {name.replace("-", "_")} if top.isidentifier() and _spec(top))


def _present(roots: list[Path], parts: tuple[str, ...]) -> str:
    """List the content of the deepest folder of the path that exists."""
    for depth in range(len(parts) - 1, -1, -1):
        folders = [folder for root in roots if (folder := root.joinpath(*parts[:depth])).is_dir()]
        names = sorted(
            path.name + ("/" if path.is_dir() else "")
            for folder in folders
            for path in folder.iterdir()
            if path.suffix not in (".py", ".pyc") and path.name != "__pycache__"
        )
        if folders:
            where = "/".join(parts[:depth]) or "its top"
            shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            return f"In {where}: {shown or 'nothing'}." + did_you_mean(parts[depth], [n.rstrip("/") for n in names])
    return ""
