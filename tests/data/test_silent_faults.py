"""Faults in data that no parser minds: each is refused with its place, found by an audit, or does no harm."""

from __future__ import annotations

import io
import json
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pytest
from expected import raises
from pyarrow import parquet

from ftengine.api import SilentListener, Task
from ftengine.data.encoding import encode_split
from ftengine.data.split import make_splits
from ftengine.engine.prepared_data import learn_labels
from ftengine.errors import DataError
from ftengine.run.recipe import DataSection
from ftengine.testing.models import word_piece_tokenizer
from ftengine_builtins.audits.balance import Balance
from ftengine_builtins.tasks.text_classification import TextClassification
from ftengine_builtins.tasks.token_classification import TokenClassification

INVISIBLE = "\u200b\u200c\u200d\ufeff\u2060\xad\ufe0f\u200e\u200f\u202a\u202e\u2066\u034f\u3164"
SENTENCE = "the cat sat on a mat while two dogs ran far away from home to see"
WORDS = SENTENCE.split()
"""Enough for near duplicates to be looked for in parts."""
TEN = [{"text": f"{SENTENCE} {i}", "label": "pos" if i % 2 else "neg"} for i in range(10)]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def labelled(*labels):
    return lines(*({"text": f"text {i}", "label": label} for i, label in enumerate(labels)))


def table(labels, **columns):
    found = io.BytesIO()
    parquet.write_table(
        pa.table({"text": [f"text {i}" for i in range(len(labels))], "label": labels, **columns}), found
    )
    return found.getvalue()


def csv(*rows, head="text,label"):
    return "\n".join([head, "a,pos", "b,neg", *rows]) + "\n"


@pytest.fixture(scope="module")
def tokenizer():
    return word_piece_tokenizer()


@pytest.fixture
def prepare(write, tokenizer):
    """Read, divide and encode files as a run does; return the task and the encoded splits."""

    def prepare(name, content, *, test=None, on_error="fail", task=None, **options):
        write(name, content)
        if test is not None:
            write("test.jsonl", test)
        task = TextClassification() if task is None else task
        held = None if test is None else "test.jsonl"
        section = DataSection(train=name, validation=None, test=held, on_error=on_error, **options)
        splits = make_splits(section, task, 0).mapping()
        task.labels = learn_labels(task, splits, stratified=False)
        settings = {"on_error": on_error, "listener": SilentListener()}
        return task, {n: encode_split(n, rows, task, tokenizer, 64, **settings) for n, rows in splits.items()}

    return prepare


POS, NEG = "caf\xe9", "bar"
BAD = [
    # Labels that look alike, of which the rarer is refused: name, content, place, a word of the reason.
    ("composed or not", "t.jsonl", labelled(POS, POS, NEG, "cafe\u0301"), 4, "looks like"),
    ("a character that is not drawn", "t.jsonl", labelled("pos", "pos", NEG, "po\u200bs"), 4, "looks like"),
    ("a soft hyphen", "t.jsonl", labelled("pos", "pos", NEG, "po\xads"), 4, "looks like"),
    ("mark in front", "t.jsonl", labelled("pos", "pos", NEG, "\ufeffpos"), 4, "looks like"),
    ("no-break space", "t.jsonl", labelled("so good", "so good", NEG, "so\xa0good"), 4, "looks like"),
    ("1 and 1.0", "t.csv", csv("a,1", "b,1", "c,1.0"), 6, "looks like"),
    ("true and True", "t.jsonl", labelled("true", "true", "false", "True"), 4, "looks like"),
    ("truth and text", "t.jsonl", labelled(True, True, False, "True"), 4, "looks like"),
    ("several labels", "t.jsonl", labelled([POS], [POS, NEG], [NEG, "cafe\u0301"]), 3, "looks like"),
    ("truths among numbers", "t.jsonl", labelled(1, 0, 1, True), 4, "finite number"),
    ("numbers among truths", "t.jsonl", labelled(True, False, True, 1), 4, "true or false"),
    # Labels that are none.
    ("NaN among whole numbers", "t.jsonl", labelled(1, 0, float("nan")), 3, "nan"),
    ("nan as text", "t.csv", csv("a,1", "b,0", "c,nan").replace("pos", "1").replace("neg", "0"), 6, "finite"),
    ("NaN among numbers", "t.jsonl", labelled(1.5, 0.5, float("nan")), 3, "finite"),
    ("infinite", "t.jsonl", labelled(1.5, 0.5, float("-inf")), 3, "finite"),
    ("too large", "t.jsonl", labelled(1.5, 0.5, 7).replace("7", "1e999"), 3, "finite"),
    ("NaN in a table", "t.parquet", table([1.5, 0.5, float("nan"), 2.5]), " row 3", "finite"),
    ("nan in a table of text", "t.csv", "text,label\na,1.5\nb,nan\nc,2\n", 3, "finite"),
    ("no number among numbers", "t.csv", "text,label\na,1.5\nb,n/a\nc,2\n", 3, "task.kind=single"),
    ("Python's own number", "t.csv", "text,label\na,1.5\nb,1_5\nc,2\n", 3, "finite"),
    ("decimal comma among numbers", "t.csv", 'text,label\na,1.5\nb,"1,5"\nc,2\n', 3, "write 1.5"),
    ("no value among numbers", "t.csv", "text,label\na,1.5\nb,\nc,2\n", 3, "missing"),
    ("nothing that is drawn", "t.jsonl", labelled("pos", "neg", "\u200b"), 3, "the label is"),
    ("empty", "t.jsonl", labelled("pos", "neg", ""), 3, "the label is"),
    ("blank", "t.jsonl", labelled("pos", "neg", " \xa0"), 3, "the label is"),
    ("null", "t.jsonl", labelled("pos", "neg", None), 3, "missing"),
    ("an object", "t.jsonl", labelled("pos", "neg", {"a": 1}), 3, "the label is"),
    # Texts that are none.
    ("number as text", "t.jsonl", lines(*TEN, {"text": 5, "label": "pos"}), 11, "must be text"),
    ("list as text", "t.jsonl", lines(*TEN, {"text": ["a"], "label": "pos"}), 11, "must be text"),
    ("text is null", "t.jsonl", lines(*TEN, {"text": None, "label": "pos"}), 11, "missing"),
    ("text is not drawn", "t.jsonl", lines(*TEN, {"text": "\u200b\ufeff ", "label": "pos"}), 11, "invisible"),
    ("text under another name", "t.jsonl", lines(*TEN, {"Text": "a", "label": "pos"}), 11, "missing"),
    # Rows that say two things, or stand where no row is.
    ("doubled key", "t.jsonl", lines(*TEN) + '{"text": "a", "text": "b", "label": "pos"}', 11, "'text' occurs twice"),
    ("doubled by an escape", "t.jsonl", lines(*TEN) + '{"text": "a", "te\\u0078t": "b"}', 11, "'text' occurs twice"),
    ("doubled inside", "t.jsonl", lines(*TEN) + '{"text": "a", "m": [{"k": 1, "k": 1}]}', 11, "'k' occurs twice"),
    ("doubled in a list", "t.json", f'{json.dumps(TEN)[:-1]}, {{"k": 1, "k": 2}}]', "[10]", "'k' occurs twice"),
    ("mark inside", "t.jsonl", lines(*TEN) + '\ufeff{"text": "a"}', 11, "not valid JSON"),
    ("header again", "t.csv", csv("text,label"), 4, "header"),
    ("header again, marked", "t.csv", csv("\ufefftext,label"), 4, "header"),
    ("apostrophes for quotes", "t.csv", csv("'c, d',pos"), 4, "3 fields"),
    ("backslash for a quote", "t.csv", csv('"c \\" d",pos'), 4, "not valid CSV"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_a_bad_row_is_named_and_can_be_skipped(prepare, name, content, place, reason):
    where = f"{name}:{place}" if isinstance(place, int) else f"{name}{place}"
    with raises(DataError, where + ": ", reason) as caught:
        prepare(name, content)
    assert "data.on_error=skip" in str(caught.value)
    _, encoded = prepare(name, content, on_error="skip")
    split = encoded["train"]
    assert split.rows.skipped.count + len(split.skipped) == 1
    assert len(split) == len(split.rows) - len(split.skipped) >= 2


def test_numbers_are_not_taken_for_classes_because_one_row_has_none(prepare):
    rows = [f"flat {i},{1000 + 7 * i}" for i in range(12)]
    with raises(DataError, "'label' has 13 different labels in 13", "task.kind=regression", "'n/a'", "on_error=skip"):
        prepare("t.csv", "\n".join(["text,label", *rows, "flat,n/a"]))
    codes = [f"part {i},{1000 + i % 3}" for i in range(12)]
    assert len(prepare("t.csv", "\n".join(["text,label", *codes]))[1]["train"]) == 12


WHOLE = [
    ("columns that differ by a blank", "t.csv", "text,label,label \na,x,y\nb,y,x\n", "look alike"),
    ("columns that differ by nothing drawn", "t.jsonl", lines(*TEN, {"te\u200bxt": "a"}), "look alike"),
    ("doubled column of a table", "t.parquet", None, "two columns"),
    ("doubled part of a column", "t.parquet", "struct", "two parts"),
    ("two byte order marks", "t.csv", "\ufeff\ufeff" + csv(), "no column 'text'"),
    ("no header", "t.csv", "a,pos\nb,neg\n", "no column 'text'"),
    ("dates as labels", "t.parquet", table(pa.array([0, 1], pa.date32())), "t.parquet row 1: the label is"),
    ("bytes as labels", "t.parquet", table([b"a", b"b"]), "t.parquet row 1: the label is"),
]


@pytest.mark.parametrize(("name", "content", "reason"), [case[1:] for case in WHOLE], ids=[case[0] for case in WHOLE])
def test_a_file_that_cannot_be_read_in_one_way_is_refused(prepare, name, content, reason):
    if not isinstance(content, (bytes, str)) or content == "struct":
        column = pa.array(["a", "b"])
        twice = [("text", column), ("text", column), ("label", column)]
        if content == "struct":
            twice = [("text", column), ("label", column), ("m", pa.StructArray.from_arrays([column] * 2, ["k", "k"]))]
        found = io.BytesIO()
        parquet.write_table(pa.Table.from_arrays([c for _, c in twice], names=[n for n, _ in twice]), found)
        content = found.getvalue()
    for on_error in ("fail", "skip"):
        with raises(DataError, reason):
            prepare(name, content, on_error=on_error)


SOUND = [
    ("1 and text 1", "t.jsonl", labelled(1, "1", 0, "0", 1.0), ("0", "1")),
    ("white space around", "t.jsonl", labelled("pos", " pos", "neg", "neg\xa0"), ("neg", "pos")),
    ("past the precision of floats", "t.jsonl", labelled(2**53, 2**53 + 1), (str(2**53), str(2**53 + 1))),
    ("truths of a table", "t.parquet", table([True, False]), ("false", "true")),
    ("a row separator inside", "t.jsonl", labelled("a\u2028b", "c"), ("a\u2028b", "c")),
    ("decimals of a table", "t.parquet", table(pa.array([1.5, 2.0]).cast(pa.decimal128(5, 1))), ("label",)),
    ("missing numbers of a table", "t.parquet", table([1.0, 0.0, 1.0]), ("0", "1")),
    ("names that are not finite", "t.jsonl", labelled("nan", "roti"), ("nan", "roti")),
    ("names of emoji", "t.jsonl", labelled("\U0001f468\u200d\U0001f469", "b"), ("b", "\U0001f468\u200d\U0001f469")),
]


@pytest.mark.parametrize(("name", "content", "names"), [case[1:] for case in SOUND], ids=[case[0] for case in SOUND])
def test_what_is_meant_is_kept(prepare, name, content, names):
    task, encoded = prepare(name, content)
    assert task.labels.names == names
    assert not encoded["train"].skipped


@pytest.mark.parametrize("near", [0.8, None], ids=["near", "equal"])
def test_rows_that_look_the_same_are_one(prepare, audit, write, near):
    """As leaks, as duplicates, and for the division; the texts themselves stay."""
    ways = [*INVISIBLE, "e\u0301"]
    known = [
        {"text": f"{SENTENCE} caf\xe9 {i}" if near is None else f"{i} {WORDS[i]} caf\xe9"} for i in range(len(ways))
    ]
    known = [{**row, "label": "pos" if i % 2 else "neg"} for i, row in enumerate(known)]
    twins = [
        {**row, "text": row["text"].replace("\xe9", w if "e" in w else f"\xe9{w}")}
        for row, w in zip(known, ways, strict=True)
    ]
    with raises(DataError, f"{len(ways)} of {len(ways)} test rows", "t.jsonl:1 = test.jsonl:1"):
        prepare("t.jsonl", lines(*known), test=lines(*twins), near_duplicates=near)
    source = write("both.jsonl", lines(*known, *twins))
    assert audit(TextClassification(), source, near_duplicates=near).splits["train"].duplicates == len(ways)
    for seed in range(3):
        parts = divided(source, seed, near_duplicates=near)
        texts = {name: [row["text"] for row in rows] for name, rows in parts.items()}
        assert sorted(chain(*texts.values())) == sorted(row["text"] for row in (*known, *twins))
        for one, other in zip(known, twins, strict=True):
            assert len({name for name, kept in texts.items() if {one["text"], other["text"]} & set(kept)}) == 1


def divided(source: str, seed: int, task: Task | None = None, **options):
    section = DataSection(train=source, validation=0.4, **options)
    return make_splits(section, task or TextClassification(), seed, audited=False).mapping()


def test_tags_that_look_alike_are_refused_by_entity(prepare):
    def row(*tags):
        return {"tokens": [f"w{i}" for i in range(len(tags))], "tags": tags}

    rows = lines(row("B-P\xc9", "I-P\xc9"), row("O", "B-P\xc9"), row("O", "B-PE\u0301"))
    with raises(DataError, "t.jsonl:3: "):
        prepare("t.jsonl", rows, task=TokenClassification())
    task, encoded = prepare("t.jsonl", rows, task=TokenClassification(), on_error="skip")
    assert task.labels.names == ("O", "B-P\xc9", "I-P\xc9")
    assert len(encoded["train"].skipped) == 1


def test_a_label_that_looks_like_one_of_training_is_refused_in_any_split(prepare):
    test = labelled("cafe\u0301").replace("text 0", "another")
    with raises(DataError, "test.jsonl:1: "):
        prepare("t.jsonl", labelled(POS, NEG), test=test)


def test_missing_values_as_labels_are_reported(audit, write):
    result = audit(TextClassification(), write("t.jsonl", labelled("pos", "neg", "None", "N/A", "None")))
    [found] = [f for f in result.findings if f.source == Balance.name and f.figures == {"N/A": 1, "None": 2}]
    assert found.level == "note"


def test_a_test_file_equal_to_the_training_file_is_refused(prepare):
    with raises(DataError, "10 of 10 test rows"):
        prepare("t.jsonl", lines(*TEN), test=lines(*TEN))
    assert Path("t.jsonl").read_text() == Path("test.jsonl").read_text()
