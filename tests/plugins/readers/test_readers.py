"""Readers of third parties: rows with their places, broken rows with reasons, kept under the reader's name."""

import json
import sqlite3
import types

import pyarrow as pa
import pytest
from expected import raises

from ftengine import Recipe, fine_tune, hookimpl, load_run, registry_of
from ftengine.api import BrokenRow, Config, FileReader, Reader, Row
from ftengine.data.read import read_rows
from ftengine.engine.predict import predict_file
from ftengine.errors import DataError, PluginError, RecipeError, UnknownName


class Blocks(FileReader):
    """Blocks of `key: value` lines, apart by blank lines."""

    name = "blocks"
    suffixes = (".blocks",)
    read_so_far = 0

    class Config(Config):
        """How keys are told from values."""

        sign: str = ":"

    def read(self, source):
        type(self).read_so_far += 1
        with open(source, encoding="utf-8") as file:
            for number, block in enumerate(file.read().split("\n\n")):
                pairs = [line.partition(self.config.sign) for line in block.strip().splitlines()]
                wrong = [key for key, sign, _ in pairs if not sign]
                if "END" in wrong:
                    raise BrokenRow(f" block {number}", "the file ends here")
                if wrong:
                    yield BrokenRow(f" block {number}", f"{wrong[0]!r} is no `key: value`")
                else:
                    yield Row(f" block {number}", {key.strip(): value.strip() for key, _, value in pairs})


class Table(Reader):
    """A table of an SQLite file: sqlite://FILE?TABLE."""

    name = "sqlite"

    def accepts(self, source):
        return source.startswith("sqlite://")

    def read(self, source):
        file, _, table = source.removeprefix("sqlite://").partition("?")
        with sqlite3.connect(file) as connection:
            cursor = connection.execute(f'select text, label from "{table}"')
            yield from (Row(f" row {i}", {"text": a, "label": b}) for i, (a, b) in enumerate(cursor))


class Odd(FileReader):
    """Whatever its option says."""

    name = "odd"
    suffixes = (".odd",)

    class Config(Config):
        """What it yields."""

        kind: str = "tuple"

    def read(self, source):
        if self.config.kind == "arrow":
            return pa.RecordBatchReader.from_batches(pa.schema([]), [])
        kinds = {
            "tuple": (1, {}),
            "object": Row(1, {"when": object()}),
            "list": Row(2, [1]),
            "half": Row(3, {"a": "\ud83d"}),
            "number": Row(4, {1: "a"}),
        }
        if self.config.kind == "nothing":
            return None
        if self.config.kind == "beside":
            return open("beside.txt")
        if self.config.kind == "value":
            return (Row(int(text), {}) for text in "x")
        return iter([kinds[self.config.kind]])


class Asking(FileReader):
    """Read where it was told with what; nothing else may ask it."""

    name = "asking"
    suffixes = (".asking", ".jsonl")

    class Config(Config):
        """What has to be told."""

        key: str

    def read(self, source):
        yield Row(1, {"key": self.config.key})


class Absent(FileReader):
    """Fail as the system does."""

    name = "absent"
    suffixes = (".absent",)

    def read(self, source):
        yield Row(1, {"a": 1})
        raise OSError(5, "Input/output error")


@pytest.fixture
def registry():
    plugin = types.ModuleType("readers")
    plugin.ftengine_readers = hookimpl(lambda: [Blocks, Table, Odd, Asking, Absent])
    plugin.ftengine_readers.__name__ = "ftengine_readers"
    Blocks.read_so_far = 0
    return registry_of({"readers": plugin})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path


GOOD = "text: a\nlabel: x\n\ntext: b\nlabel: y"


def test_rows_come_with_their_places(here, registry):
    (here / "d.blocks").write_text(GOOD)
    rows = read_rows("d.blocks", registry=registry)
    assert list(rows) == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert [rows.where(i) for i in range(2)] == ["d.blocks block 0", "d.blocks block 1"]


def test_a_broken_row_ends_the_command_or_is_counted(here, registry):
    (here / "d.blocks").write_text(GOOD + "\n\noops")
    with raises(DataError, "d.blocks block 2", "'oops'"):
        read_rows("d.blocks", registry=registry)
    rows = read_rows("d.blocks", registry=registry, on_error="skip")
    assert (len(rows), rows.skipped.count) == (2, 1)
    assert rows.skipped.first == ("d.blocks block 2: 'oops' is no `key: value`",)
    (here / "d.blocks").write_text(GOOD + "\n\nEND")
    with raises(DataError, "d.blocks block 2", "ends here"):
        read_rows("d.blocks", registry=registry, on_error="skip")


def test_a_named_reader_reads_files_of_any_suffix(here, registry):
    (here / "d.notes").write_text(GOOD)
    with raises(DataError, ".notes", ".blocks", "data.reader"):
        read_rows("d.notes", registry=registry)
    assert len(read_rows("d.notes", registry=registry, reader={"name": "blocks"})) == 2


def test_an_address_is_read_where_a_reader_accepts_it(here, registry):
    with sqlite3.connect("shop.db") as connection:
        connection.execute("create table tickets (text, label)")
        connection.executemany("insert into tickets values (?, ?)", [("a", "x"), ("b", "y")])
    rows = read_rows("sqlite://shop.db?tickets", registry=registry)
    assert list(rows) == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert rows.where(1) == "sqlite://shop.db?tickets row 1"
    assert not (here / "cache").exists()


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("tuple", PluginError, "a tuple of 1"),
        ("nothing", PluginError, "None"),
        ("number", PluginError, "read() returned 1"),
        ("value", ValueError, "invalid literal for int"),  # the reader's own, as any component's
        ("beside", DataError, "beside.txt"),
        ("object", DataError, "d.odd:1: "),
        ("list", PluginError, "d.odd:2"),
        ("half", DataError, "d.odd:3: "),
        ("arrow", DataError, "d.odd holds no rows"),
    ],
)
def test_what_a_reader_gives_is_checked(here, registry, kind, error, message):
    (here / "d.odd").write_text("x")
    with raises(error, message):
        read_rows("d.odd", registry=registry, reader={"name": "odd", "kind": kind})
    assert list((here / "cache" / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("csvv", UnknownName, "'csv'"),
        ({"name": "csv", "separator": "ab"}, RecipeError, "data.reader.separator"),
        ({"name": "jsonl", "rows": 1}, RecipeError, "data.reader.rows"),
    ],
)
def test_wrong_readers_are_refused_before_anything_is_read(bert_folder, spec, error, message):
    content = {"model": {"source": str(bert_folder)}, "task": "text-classification", "strategy": "lora"}
    with raises(error, message):
        fine_tune(Recipe.make({**content, "data": {"train": "nowhere.jsonl", "reader": spec}}))


def test_a_run_on_a_third_partys_format_predicts_from_any(here, registry, bert_folder):
    blocks = [f"text: {'goal' if i % 2 else 'shares'} {i}\nlabel: {'ab'[i % 2]}" for i in range(16)]
    (here / "d.blocks").write_text("\n\n".join(blocks))
    recipe = {
        "model": {"source": str(bert_folder)},
        "task": "text-classification",
        "data": {"train": "d.blocks", "reader": "blocks", "validation": 0.25},
        "strategy": "lora",
        "train": {"max_steps": 1, "precision": "float32"},
        "evaluation": {"resamples": 100},
        "output": "run",
    }
    run = fine_tune(Recipe.make(recipe), registry=registry)
    assert run.recipe.data.reader == {"name": "blocks", "sign": ":"}
    (here / "new.jsonl").write_text('{"text": "goal"}\n')
    predict_file(load_run("run", registry=registry), "new.jsonl", here / "answers.jsonl")
    assert len([json.loads(line) for line in (here / "answers.jsonl").read_text().splitlines()]) == 1
