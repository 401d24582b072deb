"""Files that are packed, in another encoding, or several in a folder: read, or refused with what to do."""

from __future__ import annotations

import gzip
import subprocess

import pyarrow as pa
import pytest
from expected import raises
from pyarrow import parquet

from ftengine.data import files
from ftengine.data.read import read_rows
from ftengine.errors import DataError

TEXTS = {
    "rows.jsonl": '{"text": "a"}\n{"text": "b"}\n',
    "rows.json": '[{"text": "a"}, {"text": "b"}]',
    "rows.csv": "text\na\nb\n",
    "rows.tsv": "text\tn\na\t1\nb\t2\n",
    "rows.txt": "a\n\nb\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_packed_file_has_the_rows_of_the_plain_one(tmp_path, name):
    (tmp_path / name).write_text(TEXTS[name])
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(TEXTS[name].encode()))
    packed = read_rows(str(tmp_path / f"{name}.gz"))
    assert list(packed) == list(read_rows(str(tmp_path / name)))
    assert packed.where(0).startswith(str(tmp_path / f"{name}.gz"))


@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.jsonl.gz", "rows.json.gz", "rows.txt.gz"])
def test_a_packed_file_that_unfolds_to_far_more_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "UNFOLDED_LEAST", 1 << 20)
    (tmp_path / name).write_bytes(gzip.compress(b"[" + b" " * (8 << 20)))
    with raises(DataError, name, files.UNFOLDED_VARIABLE):
        read_rows(str(tmp_path / name))


@pytest.mark.parametrize("content", [b"text,label\n", gzip.compress(b"text\na\n" * 500)[:-30]], ids=["plain", "cut"])
def test_a_damaged_packed_file_is_refused(tmp_path, content):
    (tmp_path / "rows.csv.gz").write_bytes(content)
    with raises(DataError, "rows.csv.gz", "gzip"):
        read_rows(str(tmp_path / "rows.csv.gz"))


@pytest.mark.parametrize("packed", [False, True])
def test_another_encoding_is_named_with_the_command_that_mends_it(tmp_path, monkeypatch, packed):
    monkeypatch.chdir(tmp_path)
    content = "text,label\nschön,a\nfein,b\n".encode("cp1252")
    name = "my rows.csv.gz" if packed else "my rows.csv"
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError) as caught:
        read_rows(name)
    message = str(caught.value)
    assert f"{name}:2" in message
    assert "on_error" not in message
    command = message[message.index("gunzip" if packed else "iconv") :].rstrip(".")
    subprocess.run(command, shell=True, check=True)
    (made,) = tmp_path.glob("*.utf8.csv")
    assert [row["text"] for row in read_rows(str(made))] == ["schön", "fein"]


def write_folder(folder, **contents):
    folder.mkdir()
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_text(content)
    return str(folder)


def test_a_folder_of_files_is_one_source_by_name(tmp_path):
    source = write_folder(tmp_path / "rows", b_csv="text,label\nc,x\n", a_csv="text,label\na,x\nb,y\n")
    (tmp_path / "rows" / ".hidden").write_text("")
    rows = read_rows(source)
    assert [row["text"] for row in rows] == ["a", "b", "c"]
    assert [rows.where(i) for i in range(3)] == [f"{source}/a.csv:2", f"{source}/a.csv:3", f"{source}/b.csv:2"]


def test_a_folder_of_parquet_files_is_one_source(tmp_path):
    for name, texts in (("b", ["c"]), ("a", ["a", "b"])):
        parquet.write_table(pa.table({"text": texts}), tmp_path / f"{name}.parquet")
    assert [row["text"] for row in read_rows(str(tmp_path))] == ["a", "b", "c"]
    parquet.write_table(pa.table({"text": [1]}), tmp_path / "c.parquet")
    with raises(DataError, "c.parquet", "text (int64)"):
        read_rows(str(tmp_path))


@pytest.mark.parametrize(
    ("contents", "facts"),
    [
        ({"a_csv": "text\na\n", "b_jsonl": '{"text": "b"}\n'}, ("b.jsonl", "a.csv")),
        ({"a_csv": "text\na\n", "b_csv": "words\nb\n"}, ("b.csv", "columns words", "a.csv")),
        ({"a_csv": "text\na\n", "notes_md": "# on rows"}, ("notes.md",)),
        ({"a_csv": "text,label\na,x,y\n"}, ("/a.csv:2",)),
    ],
)
def test_a_folder_of_unlike_files_is_refused_by_name(tmp_path, contents, facts):
    with raises(DataError, *facts):
        read_rows(write_folder(tmp_path / "rows", **contents))
