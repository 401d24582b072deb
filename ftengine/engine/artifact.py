"""Opening an exported artifact in isolation, so that only its own files can answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from ftengine.api import Exporter, ExportSource, Runtime
from ftengine.errors import PluginError
from ftengine.plugins.attribution import contract_error, named

AWAY = ".away"
"""Suffix of folders that are renamed for a while."""


def source_of_artifact(exporter: Exporter, source: ExportSource, nowhere: Path) -> ExportSource:
    """Return the source for opening an artifact: the base and its processor, without the trained part.

    Args:
        nowhere: a path that does not exist, given in place of the trained part.
    """

    def refuse(*_: object) -> NoReturn:
        raise PluginError(
            f"{named(exporter)}: open() asks for the merged model, which is not in the artifact: open what export() "
            "wrote into `folder`."
        )

    return replace(source, merged=refuse, check_merge=refuse, trained=nowhere)


@contextmanager
def opened_by(exporter: Exporter, folder: Path, source: ExportSource) -> Iterator[Runtime]:
    """Open an artifact with its exporter (PluginError: open() does not yield a Runtime)."""
    with exporter.open(folder, source) as opened:
        if not isinstance(opened, Runtime):
            allowed = "or yield a Runtime, which is Runtime(model=…) of a LoadedModel"
            raise contract_error(exporter, "open", opened, allowed)
        yield opened


@contextmanager
def out_of_reach(workshop: Path) -> Iterator[None]:
    """Rename the files that the export was made from while an artifact is opened, so that no stored path works."""
    moved = [(path, path.with_name(path.name + AWAY)) for path in sorted(workshop.iterdir())]
    for path, away in moved:
        path.rename(away)
    try:
        yield
    finally:
        for path, away in moved:
            away.rename(path)
