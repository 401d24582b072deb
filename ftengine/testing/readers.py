"""Checks of readers of data."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftengine.api import BrokenRow, Example, Reader, Row
from ftengine.testing.checks import Check, not_suited, run_checks, skip
from ftengine.testing.loaders import AcceptingChecks
from ftengine.testing.samples import rows_of_images, rows_of_texts
from ftengine.testing.values import explained, without_pickles


def check_reader(
    make: Callable[[], Reader],
    source: str,
    rows: Sequence[Example] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check a reader on a small file or folder; a file is copied, and damaged copies are read as well.

    Args:
        make: returns a fresh reader.
        source: a source to read.
        rows: its expected rows; None to skip the comparison.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    run_checks(ReaderChecks(make, source, rows), expected_failed_checks)


TIMES = 837
"""How often the rows of a sample are written into a long file, so that no usual size of batches divides them."""


def sample_sources(folder: Path, times: int = 1) -> dict[str, Sequence[Example] | None]:
    """Write rows of a text and its label in the usual formats; return the rows of each path, None for images.

    Args:
        folder: the folder to create.
        times: how often the rows are repeated.
    """
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(exist_ok=True)
    rows = [dict(row) for row in rows_of_texts()] * times
    columns = list(rows[0])
    lines = [json.dumps(row) for row in rows]
    quoted = [[f'"{name}"' for name in columns], *([f'"{row[name]}"' for name in columns] for row in rows)]
    texts = {
        "rows.jsonl": "\n".join(lines),
        "rows.json": f"[{', '.join(lines)}]",
        "rows.csv": "\n".join(map(",".join, quoted)),
        "rows.tsv": "\n".join(map("\t".join, quoted)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    (folder / "rows.txt").write_text("".join(f"{row['text']}\n" for row in rows), encoding="utf-8")
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, folder / "rows.parquet")
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    for i, row in enumerate(rows_of_images()):
        place = folder / "images" / row["label"]
        place.mkdir(parents=True, exist_ok=True)
        row["image"].save(place / f"{i}.png")
    contents: dict[str, Sequence[Example] | None] = dict.fromkeys([*texts, "rows.parquet", "rows.arrow"], rows)
    contents |= {"rows.txt": [{"text": row["text"]} for row in rows], "images": None}
    return {str(folder / name): content for name, content in contents.items()}


def long_files(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Write long files beside `sample_sources`; return by suffix the path, and the rows of sample and long file."""
    written = sample_sources(folder, TIMES)
    return {Path(x).suffix: (x, len(rows) // TIMES, len(rows)) for x, rows in written.items() if rows is not None}


def under_suffix(
    make: Callable[[], Reader], suffix: str, sources: Iterable[str], longer: Mapping[str, tuple[str, int, int]]
) -> Iterator[Check]:
    """Yield the checks of a reader on the contents of sample sources, written to files with its suffix.

    As the right rows are unknown, all checks run on the first content of which it reads rows. If it reads none, only
    the checks of `accepts` and of unreadable files run.
    """
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for source in sources:
            place = Path(folder) / Path(source).suffix.removeprefix(".")
            place.mkdir()
            copies.append(str(shutil.copy(source, place / f"rows{suffix}")))
        copy = next((copy for copy in copies if _reads_rows(make(), copy)), None)
        long = None
        if copy is not None and (long_file := longer.get(f".{Path(copy).parent.name}")) is not None:
            long = (str(shutil.copy(long_file[0], Path(folder) / f"long{suffix}")), *long_file[1:])
        for name, check in ReaderChecks(make, copy or copies[0], None, long, on=f"rows{suffix}"):
            if name in WITHOUT_ROWS or (copy is not None and name != "rows_are_those_that_were_written"):
                yield name, check


def _reads_rows(reader: Reader, source: str) -> bool:
    try:
        rows = reader.read(source)
        return any(not isinstance(row, BrokenRow) for row in rows)
    except Exception:  # of files that it cannot read, the checks will tell
        return False


WITHOUT_ROWS = ("accepting_is_quick_and_raises_nothing", "it_accepts_what_it_reads", "damaged_files_are_broken_rows")
"""Checks of a reader on a file that need no row in it."""


@dataclass
class ReaderChecks(AcceptingChecks):
    """Checks of a reader on one source, and on its rows if they are known.

    Args:
        longer: a longer file of the same format, and the numbers of rows in the source and in that file.
    """

    make: Callable[[], Reader]
    rows: Sequence[Example] | None
    longer: tuple[str, int, int] | None = None

    def it_accepts_what_it_reads(self) -> None:
        assert self.make().accepts(self.source), (
            f"accepts({Path(self.source).name!r}) is False, although it reads the file"
        )

    def rows_have_places_and_json_values(self) -> None:
        read = list(self._read(self.source))
        rows = [row for row in read if isinstance(row, Row)]
        assert rows, "read yields no Row of a source that has rows"
        for item in read:
            kind = type(item).__name__
            assert isinstance(item, (Row, BrokenRow)), f"read yields a {kind}; it must yield Row and BrokenRow"
        for row in rows:
            assert isinstance(row.place, (int, str)), (
                f"a row's place is {row.place!r}; it must be a line number or a text"
            )
            assert isinstance(row.values, Mapping), f"the values of {row.place!r} are {row.values!r}, no mapping"
            assert all(isinstance(name, str) for name in row.values), f"a column of {row.place} has no text as name"
            try:
                json.dumps(dict(row.values))
            except TypeError as error:
                raise AssertionError(f"the row at {row.place!r} has values without a JSON type: {error}") from None
        places = [row.place for row in rows]
        assert len(set(places)) == len(places), "two rows have the same place, so messages cannot identify a row"

    def rows_are_those_that_were_written(self) -> None:
        if self.rows is None:
            not_suited("the rows of this source are not known")
        broken = [str(item) for item in self._read(self.source) if isinstance(item, BrokenRow)]
        assert not broken, f"an intact row is reported as broken: {broken[0]}"
        read = [dict(item.values) for item in self._read(self.source)]
        assert read == list(self.rows), (
            f"reads {len(read):,} rows, {read[:2]} …, where there are {len(self.rows):,}, {list(self.rows)[:2]} …"
        )

    def long_files_lose_no_row(self) -> None:
        if self.longer is None:
            skip("no longer file of this format is at hand")
        place, written, long_written = self.longer
        few, many = (sum(1 for _ in self._read(source)) for source in (self.source, place))
        if few not in (written, written + 1):
            skip("its rows are not those that were written, nor these and a header")
        lost = few + long_written - written - many
        assert not lost, f"it reads {many:,} rows of a file that has {many + lost:,}: the end of a batch is rows too"

    def lines_that_cannot_be_read_are_broken_rows(self) -> None:
        path = Path(self.source)
        lines = path.read_bytes().splitlines() if path.is_file() else []
        if not lines or any(line[:1] != b"{" for line in lines):
            skip("it is not a file of a JSON object a line")
        with tempfile.TemporaryDirectory() as folder, suppress(BrokenRow):
            copy = Path(folder) / path.name
            copy.write_bytes(b"\n".join([lines[0], b'{"text": "cut', *lines[1:], b""]))
            few, more = (sum(1 for _ in self._read(source)) for source in (self.source, str(copy)))
            assert more > few, "it skips a line that it cannot read: yield BrokenRow(place, reason) for it"

    def nothing_is_unpickled(self) -> None:
        with without_pickles():
            list(self._read(self.source))

    def a_second_reading_is_the_same(self) -> None:
        reader = self.make()
        first, second = (list(map(str, self._read(self.source, reader))) for _ in "ab")
        assert first == second, "a second call gives other rows: do not store anything between calls"

    def damaged_files_are_broken_rows(self) -> None:
        if not Path(self.source).is_file():
            skip("it is not a file that could be damaged")
        intact = Path(self.source).read_bytes()
        damaged = {
            "cut in the middle": intact[: len(intact) // 2],
            "empty": b"",
            "of random bytes": bytes(i * 73 % 256 for i in range(512)),
            "with a null byte inside": intact[: len(intact) // 3] + b"\0" + intact[len(intact) // 3 :],
        }
        advice = "yield BrokenRow(place, reason) for a row that cannot be read, or raise it if nothing more can be read"
        for damage, content in damaged.items():
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / Path(self.source).name
                copy.write_bytes(content)
                # Whatever else it raises, a user would be told of a broken plugin instead of a broken file.
                with explained(f"a file {damage} cannot be read", advice), suppress(BrokenRow):
                    list(self._read(str(copy)))

    def nothing_is_written(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            place, source = Path(folder) / Path(self.source).name, Path(self.source)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, place)
            before = _content(Path(folder))
            list(self._read(str(place)))
            assert _content(Path(folder)) == before, "reading changes the source, or writes files beside it"

    def _read(self, source: str, reader: Reader | None = None) -> Iterator[Any]:
        """Yield what is read, of record batches their rows, numbered."""
        import pyarrow as pa

        content = (reader or self.make()).read(source)
        if isinstance(content, pa.RecordBatchReader):
            for i, values in enumerate(_values(content), 1):
                yield Row(i, values)
        else:
            yield from content


def _values(batches: Any) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    try:
        for batch in batches:
            yield from batch.to_pylist()
    # As the engine takes it: Arrow reads on while batches are taken.
    except pa.ArrowException as error:
        raise BrokenRow("", str(error)) from None


def _content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
