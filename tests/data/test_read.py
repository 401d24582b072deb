"""Every row comes back as it was written, with its place; what is wrong is said with file and line."""

from __future__ import annotations

import json
import os
import signal
import struct
from pathlib import Path
from unittest import mock

import datasets
import pyarrow as pa
import pytest
from expected import raises
from pyarrow import parquet
from runs import Forked

from ftengine.data import cache as row_cache
from ftengine.data.read import read_rows
from ftengine.data.split import read_for
from ftengine.errors import DataError
from ftengine.run.recipe import DataSection
from ftengine_builtins.readers import json_text

TWO = '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'
ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


def fails(source: str, **options) -> str:
    """Return the error's text, which is one line whatever was in the file."""
    with pytest.raises(DataError) as caught:
        read_rows(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    message.encode()  # it can be printed
    return message


def at(name: str, place: int | str) -> str:
    """Return a row's place by its line, or by its element as written."""
    return f"{name}{place}" if isinstance(place, str) else f"{name}:{place}"


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("data.jsonl", TWO, [1, 2]),
        ("data.ndjson", "\n" + TWO + "\n\n", [2, 3]),
        ("DATA.JSONL", TWO.replace("\n", "\r\n"), [1, 2]),
        ("data.json", json.dumps(ROWS), ["[0]", "[1]"]),
        ("pretty.json", json.dumps(ROWS, indent=2), ["[0]", "[1]"]),
        ("data.csv", "text,label\na,x\n\nb,y", [2, 4]),
        ("data.tsv", "text\tlabel\na\tx\nb\ty\n", [2, 3]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])  # the last two with a byte order mark
def test_each_text_format_gives_its_rows_and_lines(write, name, content, lines, encoding):
    rows = read_rows(write(name, content.encode(encoding)))
    assert list(rows) == [rows[0], rows[1]] == ROWS
    assert rows.columns == ["text", "label"]
    assert [rows.where(i) for i in range(len(rows))] == [at(name, line) for line in lines]


def test_parquet_keeps_its_types_and_is_reported_by_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = pa.table(
        {
            "label": pa.array(["x", "y", "x"]).dictionary_encode(),
            "score": [0.5, None, 2.0],
            "messages": [[{"role": "user"}], [{"role": "tool", "id": 7}], None],
        }
    )
    parquet.write_table(table, "data.parquet", row_group_size=2)
    rows = read_rows("data.parquet")
    assert [row["label"] for row in rows] == ["x", "y", "x"]
    assert [row["score"] for row in rows] == [0.5, None, 2.0]
    # Arrow gives every message the key `id`; the file's first message has none.
    assert [row["messages"] for row in rows] == [[{"role": "user"}], [{"role": "tool", "id": 7}], None]
    assert rows.select([2, 1]).where(0) == "data.parquet row 3"


def test_a_column_may_change_its_type_and_appear_late(write):
    lines = [{"text": i} for i in range(2500)] + [{"text": "no number", "late": {"a": [1]}}, {"text": None, "late": 2}]
    rows = read_rows(write("mixed.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert rows.columns == ["text", "late"]
    assert list(rows) == [{"late": None, **line} for line in lines]


def test_a_carriage_return_alone_is_named_with_what_to_do(write):
    for text in ("text,label\rone,x\rtwo,y\r", "text,label\na\rb,x\n"):
        message = fails(write("mac.csv", text))
        assert "carriage return" in message
        assert "universal-newline" not in message


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_a_json_list_is_read_alike_through_a_window_of_any_size(write, monkeypatch, size):
    values = [{"text": "ä[{" * 20, "n": 12345}, {"text": '"}\\', "deep": [[{"a": None}]]}, {"n": -1.5e-7}]
    source = write("list.json", "\n" + json.dumps(values, indent=3, ensure_ascii=False) + "\n\n")
    monkeypatch.setattr(json_text._JsonWindow, "SIZE", size)
    rows = read_rows(source)
    assert list(rows) == [{"text": None, "n": None, "deep": None, **value} for value in values]
    assert [rows.where(i) for i in range(3)] == ["list.json[0]", "list.json[1]", "list.json[2]"]


MALFORMED = [
    ("cut.jsonl", TWO + '{"text": "c"\n', 3, "not valid JSON: Expecting ',' delimiter at column 13"),
    ("comma.jsonl", TWO + '{"text": "c",}\n', 3, "remove the comma before the closing bracket"),
    ("between.jsonl", TWO + '{"text": "c"},\n', 3, "remove the comma between lines"),
    ("python.jsonl", TWO + "{'text': 'c'}\n", 3, "Python's notation"),
    ("none.jsonl", TWO + '{"text": None}\n', 3, "Python's notation"),
    ("two.jsonl", TWO + '{"text": "c"} {"text": "d"}\n', 3, "a second object on the line"),
    ("list.jsonl", TWO + "[1, 2]\n", 3, "a row must be an object {…}, not [1, 2]"),
    ("null.jsonl", TWO + "null\n", 3, "not null"),
    ("deep.jsonl", TWO + '{"a": ' + "[" * 100_000 + "\n", 3, "nested too deeply"),
    ("digits.jsonl", TWO + '{"a": ' + "1" * 5000 + "}\n", 3, "4300"),
    ("half.jsonl", TWO + '{"text": "\\ud83d"}\n', 3, "'\\ud83d', half of a surrogate pair"),
    ("latin.jsonl", TWO.encode() + b'{"text": "\xe9"}\n', 3, "byte 0xe9 at position 11 of the line"),
    ("latin.txt", b"one\ntwo\ncaf\xe9\n", 3, "byte 0xe9 at position 4"),
    ("many.csv", "text,label\na,x\nb,y,z\n", 3, '3 fields, but the header has 2: ["text", "label"]'),
    ("few.tsv", "text\tlabel\na\tx\nb\n", 3, "1 fields, but the header has 2"),
    ("after.csv", 'text,label\n"a\n2",x\nb,y,z\n', 4, "3 fields"),
    ("quote.csv", 'text,label\na,x\n"b" c,y\n', 3, "not valid CSV: ',' expected after '\"'"),
    ("latin.csv", b'text,label\na,x\n"b\n\xe9",y\n', 4, "byte 0xe9 at position 1"),
    ("item.json", '[{"text": "a"},\n\n5]', "[1]", "a row must be an object {…}, not 5"),
]


@pytest.mark.parametrize("text", ["ä", "a"])
@pytest.mark.parametrize(
    ("encoding", "name"), [("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32", "UTF-32")]
)
def test_text_of_several_bytes_a_character_is_named_as_what_it_is(write, encoding, name, text):
    message = fails(write("wide.jsonl", (json.dumps({"text": text}, ensure_ascii=False) + "\n").encode(encoding)))
    assert all(one in message for one in ("wide.jsonl:1: ", f"probably {name}", f"iconv -f {name} "))


@pytest.mark.parametrize(("name", "content", "line", "reason"), MALFORMED, ids=[case[0] for case in MALFORMED])
def test_a_malformed_row_is_named_by_line_and_reason_and_can_be_skipped(write, cache, name, content, line, reason):
    source = write(name, content)
    message = fails(source)
    assert message.startswith(f"{at(name, line)}: ")
    assert reason in message
    assert ("iconv" if name.startswith("latin") else "data.on_error=skip") in message
    assert list(cache.iterdir()) == []
    for _ in range(2):  # parsed, then from the cache
        rows = read_rows(source, on_error="skip")
        assert 1 <= len(rows) <= 2
        assert rows.skipped.count == 1
        assert rows.skipped.first[0].startswith(f"{at(name, line)}: ")
        assert reason in rows.skipped.first[0]
    fails(source)  # what was skipped once is not forgiven for ever


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.jsonl", b'\n{"n": "1"}\noops\n{"n": "3"}\n'),
        ("bad.csv", b"n\n1\n\xe9\n3\n"),
        ("bad.csv", b'n\n1\n"2"2\n3\n'),
        ("bad.json", b'[\n{"n": "1"},\n1234567890,\n{"n": "3"}]'),
    ],
)
def test_rows_after_a_malformed_one_are_kept_with_their_lines(write, monkeypatch, name, content):
    monkeypatch.setattr(json_text._JsonWindow, "SIZE", 2)  # the number goes on behind the window's edge
    rows = read_rows(write(name, content), on_error="skip")
    assert rows.skipped.count == 1
    places = ("[0]", "[2]") if name == "bad.json" else (2, 4)
    found = [(row["n"], rows.where(i)) for i, row in enumerate(rows)]
    assert found == [(n, at(name, place)) for n, place in zip("13", places, strict=True)]


def test_all_malformed_rows_are_counted_in_one_error_up_to_a_number(write, monkeypatch):
    content = "{}\n" + "oops\n" * 30 + "{}\n" + "oops\n" * 20
    message = fails(write("bad.jsonl", content))
    assert message.startswith("bad.jsonl:2: ")
    assert all(part in message for part in ("50 rows", "bad.jsonl:3", "bad.jsonl:6", "data.on_error=skip"))
    assert "bad.jsonl:7" not in message
    monkeypatch.setattr("ftengine.errors.MOST_REFUSED", 40)
    assert "40 or more rows" in fails(write("bad.jsonl", content))


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize(
    ("name", "content", "line", "reason"),
    [
        ("object.json", '\n{"data": []}', 2, "begins with '{' (a file with one object a line has the suffix .jsonl)"),
        ("cut.json", '[{"a": 1},\n{"a": ', 2, "Expecting value"),
        ("comma.json", '[{"a": 1},\n]', 2, "Expecting value"),
        ("between.json", '[{"a": 1}\n{"a": 2}]', 2, "'{' where ',' or ']' is expected"),
        ("end.json", '[{"a": 1}\n', 2, "'end of file' where ',' or ']' is expected"),
        ("more.json", '[{"a": 1}]\n[]', 2, "'[' after the end of the list"),
        ("latin.json", b'[{"a": 1},\n{"a": "\xe9"}]', 2, "byte 0xe9 at position 8"),
        ("cutchar.json", b'[{"a": 1},\n{"a": "\xc3', 2, "byte 0xc3 at position 8"),
        ("twice.csv", "text,label,text\na,b,c\n", 1, "two columns are named 'text'"),
        ("header.csv", b"text,\xe9\na,b\n", 1, "byte 0xe9"),
        ("open.csv", 'text,label\na,x\n"b,y\nc,z\n', 3, "a quote is opened and never closed"),
    ],
)
def test_what_makes_the_rest_unreadable_is_never_skipped(write, on_error, name, content, line, reason):
    message = fails(write(name, content), on_error=on_error)
    assert message.startswith(f"{name}:{line}: ")
    assert reason in message
    assert "data.on_error" not in message


def test_utf_16_that_is_damaged_is_named_with_its_line(write):
    assert "wide.csv:2" in fails(write("wide.csv", "text,label\na,b\n".encode("utf-16")[:-1]))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.jsonl", "", "is empty (0 bytes)"),
        ("none.parquet", "", "is empty (0 bytes)"),
        ("blank.txt", "\n \n", "holds no rows"),
        ("list.json", " [ ] ", "holds no rows"),
        ("space.json", "  \n", "holds no rows"),
        ("header.csv", "text,label\n", "holds no rows"),
        ("fake.parquet", "not parquet", "cannot be read as Parquet"),
        (
            "data.xlsx",
            "x",
            "files with the suffix '.xlsx' are not read. Save the sheet as CSV UTF-8. Data is one file (.arrow .csv",
        ),
        ("data", "x", "files with the suffix '' are not read"),
    ],
)
def test_a_file_without_rows_or_of_another_format_is_refused(write, cache, name, content, reason):
    assert reason in fails(write(name, content))
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_missing_file_is_reported_with_near_names(write):
    write("support.jsonl", TWO)
    assert "Did you mean 'support.jsonl'?" in fails("suport.jsonl")
    assert "there is no folder 'data'" in fails("data/support.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(write):
    source = write("locked.jsonl", TWO)
    os.chmod(source, 0)
    assert "Permission denied" in fails(source)


def test_columns_are_renamed(write):
    source = write("data.csv", "body,label,label_id\na,x,1\n")
    rows = read_rows(source, columns={"text": "body"})
    assert rows[0] == next(iter(rows)) == {"text": "a", "label": "x", "label_id": "1"}
    assert sorted(rows.columns) == ["label", "label_id", "text"]
    swapped = read_rows(source, columns={"label": "label_id", "name": "label"})
    assert swapped[0] == {"body": "a", "label": "1", "name": "x"}


def test_an_unknown_column_is_reported_with_those_of_the_file(write):
    message = fails(write("data.csv", "body,label\na,x\n"), columns={"text": "boody"})
    assert "data.columns.text" in message
    assert "'body'" in message


def test_a_renamed_column_does_not_hide_another(write):
    assert "has a column 'label' beside 'body'" in fails(write("d.csv", "body,label\na,x\n"), columns={"label": "body"})


def test_selected_rows_keep_their_places(write):
    rows = read_rows(write("n.jsonl", "".join(f'{{"n": {i}}}\n' for i in range(3000))))
    some = rows.select([2500, 3, 999]).select([2, 0])
    assert [row["n"] for row in some] == [some[0]["n"], some[1]["n"]] == [999, 2500]
    assert [some.where(0), some.where(1)] == ["n.jsonl:1000", "n.jsonl:2501"]
    assert len(rows.select([])) == 0
    with pytest.raises(IndexError):
        some[2]


def test_a_changed_file_is_never_taken_for_the_old_one(write):
    source = write("data.jsonl", '{"n": 1}\n')
    times = os.stat(source)
    assert read_rows(source)[0] == {"n": 1}
    write("data.jsonl", '{"n": 2}\n')
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time
    assert read_rows(source)[0] == {"n": 2}


def test_a_file_that_changes_while_it_is_read_is_refused(write, cache, monkeypatch):
    source = write("data.jsonl", TWO)
    whole = row_cache.Reading._write_rows

    def write_and_append(*arguments):
        facts = whole(*arguments)
        with open(source, "a") as file:
            file.write("{}\n")
        return facts

    monkeypatch.setattr(row_cache.Reading, "_write_rows", write_and_append)
    assert "changed while it was being read" in fails(source)
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_reported_with_the_way_out(write, cache, monkeypatch):
    source = write("data.jsonl", TWO)
    monkeypatch.setattr(row_cache.Reading, "_write_rows", mock.Mock(side_effect=OSError(28, "No space left on device")))
    message = fails(source)
    assert "No space left on device" in message
    assert "FTENGINE_CACHE" in message
    assert list(cache.iterdir()) == []


def test_a_process_killed_while_reading_leaves_no_half_cache(write, tmp_path, cache):
    source = write("data.jsonl", TWO)

    def killed():
        Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        read_rows(source)

    assert Forked(killed, tmp_path).ended() == (-signal.SIGKILL, "")
    assert [entry.suffix for entry in cache.iterdir()] == [".tmp"]
    assert list(read_rows(source)) == ROWS


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("owner/name", ("owner/name", None, "train")),
        ("owner/name:test", ("owner/name", None, "test")),
        ("owner/name:train[:10%]", ("owner/name", None, "train[:10%]")),
        ("owner/name/config", ("owner/name", "config", "train")),
        ("owner/name-2.0/en.fr:validation", ("owner/name-2.0", "en.fr", "validation")),
    ],
)
def test_a_data_set_of_the_hub_is_loaded_by_name_config_and_split(monkeypatch, tmp_path, source, asked):
    monkeypatch.chdir(tmp_path)
    load = mock.Mock(return_value=datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]}))
    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_rows(source, columns={"content": "text"}).select([2, 0])
    name, config, split = asked
    load.assert_called_once_with(name, config, split=split)
    assert list(rows) == [{"content": "c", "label": 0}, {"content": "a", "label": 0}]
    assert rows.where(0) == f"{source} row 3"


def test_a_hub_out_of_reach_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "no file 'nobody/nothing', and no data set of the hub: " in fails("nobody/nothing")


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("a.csv", "text|label\nhello|x\n", "vertical bars"),
        ("b.csv", "text;la\tbel\nhello;x\n", "semicolons"),
        ("c.tsv", "text,label\nhello,x\n", "commas"),
    ],
)
def test_another_separator_than_the_suffix_says_is_reported(write, label_task, name, content, hint):
    assert hint in fails(write(name, content), columns={"words": "text"})

    class Strict(type(label_task)):
        def check_columns(self, columns):
            raise DataError(f"no column 'text' (columns: {', '.join(columns)}).")

    with pytest.raises(DataError) as caught:
        read_for(name, DataSection(train=name), Strict())
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "separator"),
    [
        ("a.csv", "text|label\nhi, you|x\n", '["text|label"]'),
        ("b.csv", "text\nhi, you\n", None),
        ("c.csv", 'text,label\n"hi"; you,x\n', None),  # a stray quote
        ("d.csv", '"text"|"label"\n"hi, you"|"x"\n', "vertical bars"),
        ("e.csv", 'text|label\n"hi"|"x"\n', "vertical bars"),
        ("f.tsv", '"text","label"\n"hi","x"\n', "commas"),
        ("g.csv", '"a, b"|"c, d"\n"hi"|"x"\n', "vertical bars"),
    ],
)
def test_rows_that_do_not_fit_show_another_separator(write, name, content, separator):
    message = fails(write(name, content))
    assert separator in message if separator else "separator" not in message


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("text;label\nhi, you;1,5\n", [{"text": "hi, you", "label": "1,5"}]),
        ("\n\ntext\tlabel\r\nhi, you;\tx\r\n", [{"text": "hi, you;", "label": "x"}]),
        ('"a, b";"c ""d"", e"\n"1;2";3\n', [{"a, b": "1;2", 'c "d", e': "3"}]),
        ('"a; b",c\n1,2\n', [{"a; b": "1", "c": "2"}]),
        ("text\na;b\n", [{"text": "a;b"}]),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with-byte-order-mark"])
def test_a_header_without_commas_says_what_separates(write, content, rows, mark):
    assert list(read_rows(write("a.csv", mark + content))) == rows


@pytest.mark.parametrize("make", [pa.ipc.new_file, pa.ipc.new_stream])
def test_an_arrow_file_whose_offsets_lead_out_of_its_data_is_refused(tmp_path, make):
    """Arrow itself follows them, and the process dies."""
    table, file = pa.table({"text": ["good", "bad"]}), tmp_path / "a.arrow"
    with make(str(file), table.schema) as writer:
        writer.write_table(table)
    offsets = struct.pack("<3i", 0, 4, 7)
    assert file.read_bytes().count(offsets) == 1
    file.write_bytes(file.read_bytes().replace(offsets, struct.pack("<3i", 0, 4, 2**30)))
    with raises(DataError, "a.arrow"):
        read_rows(str(file))
