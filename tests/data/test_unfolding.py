"""A small file that stands for far more bytes than it has is refused before these are in memory."""

from __future__ import annotations

import pyarrow as pa
import pytest
from expected import raises
from pyarrow import parquet

from ftengine.data import files as sizes
from ftengine.data.read import read_rows
from ftengine.errors import DataError, InputError
from ftengine_builtins.readers import arrow
from ftengine_builtins.readers.arrow import unfolded_bytes

COUNT, WIDTH = 400, 10_000
TABLE = pa.table({"text": pa.array(["a" * WIDTH] * COUNT), "label": ["x", "y"] * (COUNT // 2)})


def write_plain(file):
    parquet.write_table(TABLE, file, compression="zstd", use_dictionary=False)


def write_repeated(file):
    parquet.write_table(TABLE, file, compression="zstd")


def write_arrow(new, **options):
    def write(file):
        table = options.pop("table", TABLE)
        with new(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            for batch in table.to_batches(max_chunksize=100):
                writer.write_batch(batch)

    return write


def write_categories(file):
    write_arrow(pa.ipc.new_file, table=TABLE.set_column(0, "text", TABLE["text"].dictionary_encode()))(file)


def write_columns(file):
    """Each row is kept with the names of its columns."""
    with open(file, "w", encoding="utf-8") as out:
        out.write(f"{'a' * WIDTH},label\n" + "1,x\n" * COUNT)


FILES = {
    "plain.parquet": write_plain,
    "repeated.parquet": write_repeated,
    "zstd.arrow": write_arrow(pa.ipc.new_file, compression="zstd"),
    "stream.arrow": write_arrow(pa.ipc.new_stream, compression="lz4"),
    "categories.arrow": write_categories,
    "columns.csv": write_columns,
}


@pytest.fixture
def least(monkeypatch):
    monkeypatch.setattr(sizes, "UNFOLDED_LEAST", COUNT * WIDTH // 4)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_unfolds_to_far_more_is_refused_unless_it_is_allowed(tmp_path, monkeypatch, least, cache, name):
    file = tmp_path / name
    FILES[name](file)
    if name == "categories.arrow":  # its rows share one value that is no smaller in the file
        monkeypatch.setattr(sizes, "UNFOLDED_TIMES", 1)
    with raises(DataError, name, f"{sizes.UNFOLDED_VARIABLE}=5GB"):
        read_rows(str(file))
    assert not list(cache.iterdir())
    monkeypatch.setenv(sizes.UNFOLDED_VARIABLE, "5GB")
    assert len(read_rows(str(file))) == COUNT


@pytest.mark.parametrize("name", ["plain.parquet", "zstd.arrow", "stream.arrow"])
def test_what_a_file_says_of_its_size_is_looked_at_first(tmp_path, monkeypatch, least, name):
    FILES[name](tmp_path / name)
    monkeypatch.setattr(arrow, "_batches", lambda *_: pytest.fail("rows were unfolded"))
    with raises(DataError, sizes.UNFOLDED_VARIABLE):
        read_rows(str(tmp_path / name))


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_the_head_of_a_message_says_what_its_buffers_take(tmp_path, compression):
    table = TABLE.append_column("n", pa.array([1.5, None] * (COUNT // 2)))
    file = tmp_path / "a.arrow"
    write_arrow(pa.ipc.new_stream, table=table, compression=compression)(file)
    total = sum(map(unfolded_bytes, arrow._messages(str(file), False)))
    assert total == pytest.approx(table.nbytes, rel=0.01)


def test_what_is_no_size_is_refused(tmp_path, monkeypatch):
    write_plain(tmp_path / "a.parquet")
    monkeypatch.setenv(sizes.UNFOLDED_VARIABLE, "much")
    with raises(InputError, "FTENGINE_UNFOLDED=much"):
        read_rows(str(tmp_path / "a.parquet"))
