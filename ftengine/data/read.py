"""Rows of the user's data: read once into a memory-mapped Arrow file, then handed out by number.

A row of a text format is kept as its JSON text beside its line. So a column may change its type, appear
late, or hold nested messages of any shape, and every row comes back exactly as it was written; Parquet
files and data sets of the hub keep the types they have.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ftengine.data.parse import PARSERS, Malformed, parse
from ftengine.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

PARQUET = ".parquet"
SUFFIXES = (*PARSERS, PARQUET)

CACHE_VARIABLE = "FTENGINE_CACHE"
CACHE_FORMAT = 1
"""Part of every cache key; raised when the same file would be stored in another way."""

SHOWN_SKIPS = 20
"""Skipped rows whose reasons are kept; the others are only counted."""

_LINE = "__line__"
_ROW = "__row__"
_BATCH_ROWS = 1000
_BATCH_BYTES = 1 << 24

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
    """

    dataset: Dataset
    source: str
    names: Mapping[str, str]
    skipped: Skipped = Skipped()

    @property
    def columns(self) -> list[str]:
        return list(self.names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row with every column of the file; what the row does not have is None."""
        return self._row(self.dataset[int(index)])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.dataset.iter(_BATCH_ROWS):
            for values in zip(*batch.values(), strict=True):
                yield self._row(dict(zip(batch, values, strict=True)))

    def _row(self, stored: dict[str, Any]) -> dict[str, Any]:
        if _ROW in stored:
            stored = json.loads(stored[_ROW])
            return {name: stored.get(column) for name, column in self.names.items()}
        return {name: _without_nulls(stored[column]) for name, column in self.names.items()}

    def select(self, indices: Sequence[int] | np.ndarray) -> Rows:
        """Return some of the rows, in the order asked for; `where` still gives their places."""
        return replace(self, dataset=self.dataset.select(indices))

    def where(self, index: int) -> str:
        """Return the place of a row: "support.jsonl:12", or "data.parquet row 12" where there are no lines."""
        line = self.dataset[_LINE][int(index)]
        return f"{self.source}:{line}" if _ROW in self.dataset.column_names else f"{self.source} row {line}"


def read_rows(
    source: str, *, on_error: str = "fail", columns: Mapping[str, str] | None = None, partial: bool = False
) -> Rows:
    """Read a file or a data set of the hub.

    A file is parsed once and kept in `$FTENGINE_CACHE/data` (by default `~/.cache/ftengine/data`) under a
    hash of its content, so that a changed file is never taken for the old one.

    Args:
        source: a file, its format told by the suffix: .jsonl or .ndjson (an object a line), .json (a list
            of objects), .csv or .tsv (with a header; values stay text, an empty cell is None), .txt (an
            example a line, as column "text"), .parquet; or a data set of the hub (see `HUB_ID`). Blank
            lines are no rows.
        on_error: "fail" raises at the first malformed row, "skip" leaves such rows out and counts them.
        columns: renames columns, {new name: name in the file}.
        partial: leave out renames of columns that the file does not have, as of labels in data to predict.

    Raises:
        DataError: the source is missing, of another format, malformed or without rows; or a renamed
            column does not exist.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"{source} is a folder. Data is {_ALLOWED}.")
    if path.exists():
        dataset, names, skipped = _read_file(source, path, on_error)
    elif path.suffix.lower() not in SUFFIXES and not path.parent.is_dir() and (hub := HUB_ID.fullmatch(source)):
        dataset = _read_hub(source, hub)
        names, skipped = [name for name in dataset.column_names if name != _LINE], Skipped()
    else:
        raise DataError(_missing(source, path))
    wanted = {new: old for new, old in (columns or {}).items() if old in names or not partial}
    return Rows(dataset, source, _renamed(source, names, wanted), skipped)


_ALLOWED = f"one file ({' '.join(SUFFIXES)}) or a data set of the hub (owner/name[/config][:split])"


def _missing(source: str, path: Path) -> str:
    if not path.parent.is_dir():
        return f"no data file {source!r}: there is no folder {str(path.parent)!r} in {os.getcwd()}. Data is {_ALLOWED}."
    near = did_you_mean(path.name, sorted(os.listdir(path.parent)))
    return f"no data file {source!r} in {path.parent.resolve()}.{near} Data is {_ALLOWED}."


def _renamed(source: str, columns: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    for name, column in wanted.items():
        if column not in columns:
            raise DataError(
                f"{source} has no column {column!r} (recipe key data.columns.{name}). "
                f"Its columns: {', '.join(columns)}." + did_you_mean(column, columns)
            )
    kept = {column: column for column in columns if column not in wanted.values()}
    for name in kept.keys() & wanted.keys():
        raise DataError(
            f"{source} has a column {name!r} beside {wanted[name]!r}, which data.columns renames to it. "
            f"Give the other one another name as well, for example data.columns: {{other: {name}}}."
        )
    return {**kept, **wanted}


def _without_nulls(value: Any) -> Any:
    """Drop keys of nested objects that are None: Arrow gives every object of a column the same keys."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _read_file(source: str, path: Path, on_error: str) -> tuple[Dataset, list[str], Skipped]:
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
        entry = _cached(file, source, suffix, on_error)
    facts = json.loads((entry / "facts.json").read_text(encoding="utf-8"))
    try:
        dataset = Dataset.from_file(str(entry / "rows.arrow"))
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"{source} has a column of a type that is not read: {error}.") from None
    skipped = facts["skipped"]
    first = tuple(f"{source}:{line}: {reason}" for line, reason in skipped["first"])
    return dataset, facts["columns"], Skipped(skipped["count"], first)


def _cached(file: BinaryIO, source: str, suffix: str, on_error: str) -> Path:
    """Return the cache entry of an open file, made now if there is none.

    An entry is a folder that is written under another name and renamed, so that it is complete wherever
    it exists, and processes that make the same one at once do not disturb each other.
    """
    folder = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ftengine").expanduser() / "data"
    before = os.fstat(file.fileno())
    digest = blake2b(f"{CACHE_FORMAT} {suffix} {on_error} ".encode(), digest_size=20)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    file.seek(0)
    entry = folder / digest.hexdigest()
    if entry.is_dir():
        return entry
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{entry.name}-", suffix=".tmp", dir=folder) as temporary:
            part = Path(temporary, "entry")
            part.mkdir()
            write = _write_parquet if suffix == PARQUET else _write_text
            facts = write(file, part / "rows.arrow", source, suffix, on_error)
            (part / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise DataError(f"{source} changed while it was read. Try again when its writer is done.")
            try:
                part.rename(entry)
            except OSError:
                if not entry.is_dir():  # it is when another process was faster
                    raise
    except OSError as error:
        raise DataError(
            f"cannot keep the rows of {source} in the cache {folder}: {error.strerror or error}. "
            f"Make room there, or name another folder with {CACHE_VARIABLE}."
        ) from error
    return entry


def _write_text(file: BinaryIO, path: Path, source: str, suffix: str, on_error: str) -> dict[str, Any]:
    """Write the rows of a text file as Arrow; return its columns and what was skipped."""
    import pyarrow as pa

    columns: dict[str, None] = {}  # in order of appearance
    skipped = 0
    first: list[tuple[int, str]] = []

    def kept() -> Iterator[tuple[int, bytes]]:
        nonlocal skipped
        for item in parse(file, suffix):
            if not isinstance(item, Malformed):
                line, names, row = item
                columns.update(dict.fromkeys(names))
                yield line, row
            elif on_error == "fail":
                raise DataError(
                    f"{source}:{item.line}: {item.reason}. "
                    "Repair the row, or leave such rows out with data.on_error: skip."
                )
            else:
                skipped += 1
                if len(first) < SHOWN_SKIPS:
                    first.append((item.line, item.reason))

    rows = 0
    schema = pa.schema([(_ROW, pa.string()), (_LINE, pa.int64())])
    try:
        with pa.ipc.new_stream(str(path), schema) as writer:
            for lines, texts in _in_batches(kept()):
                writer.write_batch(pa.record_batch([pa.array(texts, pa.string()), pa.array(lines)], schema))
                rows += len(lines)
    except Malformed as error:
        raise DataError(
            f"{source}:{error.line}: {error.reason}. Nothing after it can be read; repair the file."
        ) from None
    if not rows:
        reason = f": all {skipped} were skipped, the first (line {first[0][0]}) as {first[0][1]}" if skipped else ""
        raise DataError(f"{source} holds no rows{reason}. It must hold at least one example.")
    return {"columns": list(columns), "skipped": {"count": skipped, "first": first}}


def _in_batches(rows: Iterable[tuple[int, bytes]]) -> Iterator[tuple[list[int], list[bytes]]]:
    """Gather rows until there are many, or until they are large: Arrow holds at most 2 GiB of text a batch."""
    lines: list[int] = []
    texts: list[bytes] = []
    size = 0
    for line, text in rows:
        lines.append(line)
        texts.append(text)
        size += len(text)
        if len(texts) == _BATCH_ROWS or size >= _BATCH_BYTES:
            yield lines, texts
            lines, texts, size = [], [], 0
    if texts:
        yield lines, texts


def _write_parquet(file: BinaryIO, path: Path, source: str, suffix: str, on_error: str) -> dict[str, Any]:
    """Write the rows of a Parquet file as Arrow, a batch at a time; return its columns."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        content = parquet.ParquetFile(file)
        columns = content.schema_arrow.names
        # Categories become the values that they stand for, as `datasets` has no type for them.
        plain = [
            field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
            for field in content.schema_arrow
        ]
        if not content.metadata.num_rows:
            raise DataError(f"{source} holds no rows; it must hold at least one example.")
        _check_free(source, columns)
        schema = pa.schema(plain, content.schema_arrow.metadata)
        done = 0
        with pa.ipc.new_stream(str(path), schema.append(pa.field(_LINE, pa.int64()))) as writer:
            for batch in content.iter_batches():
                table = pa.Table.from_batches([batch]).cast(schema)
                numbers = pa.array(range(done + 1, done + 1 + len(batch)), pa.int64())
                writer.write_table(table.append_column(_LINE, numbers))
                done += len(batch)
    except pa.ArrowException as error:
        raise DataError(f"{source} is no Parquet file that can be read: {error}.") from None
    return {"columns": columns, "skipped": {"count": 0, "first": []}}


def _check_free(source: str, columns: Sequence[str]) -> None:
    for name in (_LINE, _ROW):
        if name in columns:
            raise DataError(f"{source} has a column {name!r}; ftengine keeps this name for itself. Rename the column.")


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
    _check_free(source, dataset.column_names)
    return dataset.add_column(_LINE, np.arange(1, len(dataset) + 1))
