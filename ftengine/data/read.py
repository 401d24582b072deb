"""Rows of the user's data: read once into a memory-mapped Arrow file, then handed out by number.

A row of a text format is kept as its JSON text beside its line. So a column may change its type, appear
late, or hold nested messages of any shape, and every row comes back exactly as it was written; Parquet
files and data sets of the hub keep the types they have.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine.api import ReadsFiles
from ftengine.api.figures import counted
from ftengine.data.cache import BATCH_ROWS, LINE, ROW, SHOWN_SKIPS, SUFFIXES, cached, check_free
from ftengine.data.folder import list_images
from ftengine.data.parse import SEPARATORS, other_separator, place_of
from ftengine.errors import DataError, did_you_mean, near_file

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

BATCH_FILES = 16
"""Rows read at one time where they may hold whole files (images)."""

HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w\[\]:%+-]+))?")
"""owner/name, owner/name:split, owner/name/config or owner/name/config:split; the split is "train" by default."""


@dataclass(frozen=True)
class Skipped:
    """Malformed rows that were left out.

    Args:
        count: how many.
        first: place and reason of the first `SHOWN_SKIPS`.
    """

    count: int = 0
    first: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Examples by number, without holding them in memory.

    Args:
        dataset: the memory-mapped rows, with the hidden column that `where` reads.
        source: what the recipe calls them.
        names: for each column of a row, its name in the file.
        skipped: malformed rows that were left out when the source was read.
        folder: what paths in rows are relative to; None for a data set of the hub.
        paths: columns that hold paths, which are handed out relative to the working directory.
        separator: what separates the fields of a table.
    """

    dataset: Dataset
    source: str
    names: Mapping[str, str]
    skipped: Skipped = Skipped()
    folder: Path | None = None
    paths: frozenset[str] = frozenset()
    separator: str = ""

    @property
    def columns(self) -> list[str]:
        return list(self.names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row with every column of the file; what the row does not have is None."""
        return self._row(self.dataset[int(index)])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.dataset.iter(BATCH_FILES if self.paths else BATCH_ROWS):
            for values in zip(*batch.values(), strict=True):
                yield self._row(dict(zip(batch, values, strict=True)))

    def _row(self, stored: dict[str, Any]) -> dict[str, Any]:
        if ROW in stored:
            stored = json.loads(stored[ROW])
            row = {name: stored.get(column) for name, column in self.names.items()}
        else:
            values = {name: _without_nulls(stored[column]) for name, column in self.names.items()}
            row = {name: _named(self._categories.get(self.names[name]), value) for name, value in values.items()}
        return row | {name: self._found(row[name]) for name in self.paths & row.keys()}

    @cached_property
    def _categories(self) -> dict[str, Any]:
        """Columns whose numbers stand for names that the data set brings."""
        from datasets import ClassLabel

        features = {name: getattr(feature, "feature", feature) for name, feature in self.dataset.features.items()}
        return {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}

    def _found(self, value: Any) -> Any:
        """Return a path, alone or as {"path": …}, as seen from the working directory."""
        if self.folder is None:
            return value
        if isinstance(value, dict) and value.get("path") and value.get("bytes") is None:
            return {**value, "path": str(self.folder / value["path"])}
        return str(self.folder / value) if isinstance(value, str) and value else value

    def select(self, indices: Sequence[int] | np.ndarray) -> Rows:
        """Return some of the rows, in the order asked for; `where` still gives their places."""
        return replace(self, dataset=self.dataset.select(indices))

    def where(self, index: int) -> str:
        """Return the place of a row: "support.jsonl:12", or "data.parquet row 12" where there are no lines.

        A row of a list is at its element, from 0: "data.json[11]". A row of a folder is at the path of its image.
        """
        line = self.dataset[LINE][int(index)]
        if isinstance(line, str):
            return str(Path(self.source) / line)
        return place_of(self.source, line) if ROW in self.dataset.column_names else f"{self.source} row {line}"


def file_columns(task: object) -> tuple[str, ...]:
    """Return the columns that hold paths of files, as a task reads its rows."""
    return task.paths if isinstance(task, ReadsFiles) else ()


def read_rows(
    source: str,
    *,
    on_error: str = "fail",
    columns: Mapping[str, str] | None = None,
    partial: bool = False,
    paths: Iterable[str] = (),
) -> Rows:
    """Read a file, a folder of images, or a data set of the hub.

    A file is parsed once and kept in `$FTENGINE_CACHE/data` (by default `~/.cache/ftengine/data`) under a
    hash of its content, so that a changed file is never taken for the old one.

    Args:
        source: a file, its format known by the suffix: .jsonl or .ndjson (an object a line), .json (a list
            of objects), .csv or .tsv (with a header; values stay text, an empty cell is None; see
            `separator_of`), .txt (an
            example a line, as column "text"), .parquet, .arrow; or a folder with a subfolder of images for each
            label (columns "image", a path, and "label"); or a data set of the hub (see `HUB_ID`). Blank lines
            are no rows. Categories with names, as of the hub's data sets, are handed out by name.
        on_error: "fail" raises at the first malformed row, "skip" leaves such rows out and counts them.
        columns: renames columns, {new name: name in the file}.
        partial: leave out renames of columns that the file does not have, as of labels in data to predict.
        paths: columns that hold paths, relative to the source's folder.

    Raises:
        DataError: the source is missing, of another format, malformed or without rows; or a renamed
            column does not exist.
    """
    path = Path(source).expanduser()
    folder: Path | None = path.parent
    separator = ""
    if path.is_dir():
        dataset, names, skipped = _read_folder(source, path, on_error)
        folder = path
    elif path.exists():
        dataset, names, skipped, separator = _read_file(source, path, on_error)
    elif path.suffix.lower() not in SUFFIXES and not path.parent.is_dir() and (hub := HUB_ID.fullmatch(source)):
        dataset, folder = _read_hub(source, hub), None
        names, skipped = [name for name in dataset.column_names if name != LINE], Skipped()
    else:
        raise DataError(_missing(source, path))
    wanted = {new: old for new, old in (columns or {}).items() if old in names or not partial}
    renamed = _renamed(source, names, wanted)
    return Rows(_undecoded(dataset), source, renamed, skipped, folder, frozenset(paths), separator)


_ALLOWED = (
    f"one file ({' '.join(SUFFIXES)}), a folder of images, or a data set of the hub (owner/name[/config][:split])"
)


def _missing(source: str, path: Path) -> str:
    if not path.parent.is_dir():
        return f"no data file {source!r}: there is no folder {str(path.parent)!r} in {os.getcwd()}. Data is {_ALLOWED}."
    there = sorted(file.name for file in path.parent.iterdir() if file.suffix.lower() in SUFFIXES or file.is_dir())
    near = near_file(path.name, there)  # a recipe, say, is no data
    return f"no data file {source!r} in {path.parent.resolve()}.{near} Data is {_ALLOWED}."


def _renamed(source: str, columns: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    for name, column in wanted.items():
        if column not in columns:
            raise DataError(
                f"{source} has no column {column!r} (recipe key data.columns.{name}). "
                f"Its columns: {', '.join(columns)}." + did_you_mean(column, columns) + separator_hint(source, columns)
            )
    kept = {column: column for column in columns if column not in wanted.values()}
    for name in kept.keys() & wanted.keys():
        raise DataError(
            f"{source} has a column {name!r} beside {wanted[name]!r}, which data.columns renames to it. "
            f"Give the other one another name as well, for example data.columns: {{other: {name}}}."
        )
    return {**kept, **wanted}


def separator_hint(source: str, columns: Sequence[str]) -> str:
    """Say that a source of one column seems to be separated otherwise than its suffix says; "" where it does not."""
    own = SEPARATORS.get(Path(source).suffix.lower())
    return other_separator(own, columns) if own else ""


def plain(value: Any) -> str:
    """Return what JSON has no type for as text: a date as it is written, bytes as their hash."""
    return blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)


def _named(category: Any, value: Any) -> Any:
    """Return the name (or names) behind a category's number; those without a name count as missing."""
    if category is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(category, item) for item in value]
    return category.names[value] if 0 <= value < len(category.names) else None


def _undecoded(dataset: Dataset) -> Dataset:
    """Hand out images as the bytes or paths that are stored; whoever wants pixels reads them."""
    from datasets import Image

    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def _without_nulls(value: Any) -> Any:
    """Drop keys of nested objects that are None: Arrow gives every object of a column the same keys."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _read_folder(source: str, path: Path, on_error: str) -> tuple[Dataset, list[str], Skipped]:
    from datasets import Dataset

    images, others = list_images(path)
    if others and on_error == "fail":
        found = counted(len(others), "file that is no image", "files that are no images")
        raise DataError(
            f"{source} holds {found}, {others[0]!r} first. "
            "Take such files out, or leave them out with data.on_error: skip."
        )
    names, labels = zip(*images, strict=True)
    columns = {"image": list(names)} | ({"label": list(labels)} if None not in labels else {})
    skipped = Skipped(len(others), tuple(f"{path / name}: no image by its suffix" for name in others[:SHOWN_SKIPS]))
    return Dataset.from_dict({**columns, LINE: list(names)}), list(columns), skipped


def _read_file(source: str, path: Path, on_error: str) -> tuple[Dataset, list[str], Skipped, str]:
    from datasets import Dataset

    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{source}: files with the suffix {suffix!r} are not read. Data is {_ALLOWED}.")
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror}.") from None
    with file:
        if not os.fstat(file.fileno()).st_size:
            raise DataError(f"{source} is empty (0 bytes); it must hold at least one example.")
        entry = cached(file, source, suffix, on_error)
    facts = json.loads((entry / "facts.json").read_text(encoding="utf-8"))
    try:
        dataset = Dataset.from_file(str(entry / "rows.arrow"))
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"{source} has a column of a type that is not read: {error}.") from None
    skipped = facts["skipped"]
    first = tuple(f"{source}{place}: {reason}" for place, reason in skipped["first"])
    return dataset, facts["columns"], Skipped(skipped["count"], first), facts["separator"]


def _read_hub(source: str, hub: re.Match[str]) -> Dataset:
    import datasets
    import numpy as np

    split = hub["split"] or "train"
    try:
        # `datasets` (4.0 and later) runs no code of a data set.
        dataset = datasets.load_dataset(hub["id"], hub["config"], split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(
            f"no file {source!r}, and as a data set of the hub it cannot be loaded: {reason}. Data is {_ALLOWED}."
        ) from error
    if not len(dataset):
        raise DataError(f"{source} holds no rows in its split {split!r}.")
    check_free(source, dataset.column_names)
    return dataset.add_column(LINE, np.arange(1, len(dataset) + 1))
