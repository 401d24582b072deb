"""An artifact by itself: what an exporter may open it with, so that nothing but its files can answer."""

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
"""Behind the names of folders that are out of reach for a while."""


def source_of_artifact(exporter: Exporter, source: ExportSource, nowhere: Path) -> ExportSource:
    """Return what an artifact is opened with: the base and its processor, but nothing of what was trained.

    Args:
        nowhere: a path at which nothing is; it stands for the trained part.
    """

    def refuse(*_: object) -> NoReturn:
        raise PluginError(
            f"{named(exporter)}: open() asks for the merged model, which is not in the artifact: open what export() "
            "wrote into `folder`."
        )

    return replace(source, merged=refuse, check_merge=refuse, trained=nowhere)


@contextmanager
def opened_by(exporter: Exporter, folder: Path, source: ExportSource) -> Iterator[Runtime]:
    """Open an artifact as its exporter does (PluginError: what that gives is no Runtime)."""
    with exporter.open(folder, source) as opened:
        if not isinstance(opened, Runtime):
            allowed = "or yield a Runtime, which is Runtime(model=…) of a LoadedModel"
            raise contract_error(exporter, "open", opened, allowed)
        yield opened


@contextmanager
def out_of_reach(workshop: Path) -> Iterator[None]:
    """Have what export was made of under other names while an artifact is opened: no kept path leads there."""
    moved = [(path, path.with_name(path.name + AWAY)) for path in sorted(workshop.iterdir())]
    for path, away in moved:
        path.rename(away)
    try:
        yield
    finally:
        for path, away in moved:
            away.rename(path)
