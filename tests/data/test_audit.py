"""What is wrong with data is found, counted and said in a sentence a kind, alarms first."""

from __future__ import annotations

import json

from expected import raises

from ftengine.api import Table
from ftengine.errors import DataError
from ftengine.run.records import AuditResult


def texts(names) -> str:
    return "".join(json.dumps({"text": name}) + "\n" for name in names)


def labelled(write, name, rows) -> str:
    return write(name, "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))


def told(result: AuditResult, source: str = "") -> list[str]:
    """Return what the audits, or one of them, say that is not in order."""
    return [x.text for x in result.findings if x.level != "good" and (not source or x.source == source)]


def test_leaks_between_files_are_counted_with_their_places(write, text_task, audit):
    files = {
        "validation": write("b.jsonl", texts("pbaqb")),
        "test": write("c.jsonl", texts("rq")),
        "leaks": "warn",
    }
    result = audit(text_task, write("a.jsonl", texts("xaybz")), **files)
    first, second = result.facts["leaks"]
    names = texts(f"text {i}" for i in range(30))
    [many] = audit(text_task, write("d.jsonl", names), test=write("e.jsonl", names), leaks="warn").facts["leaks"]
    assert (many["count"], len(many["places"])) == (30, 5)
    assert (first["between"], first["count"], first["near"]) == (["train", "validation"], 3, 0)
    assert first["places"] == ["a.jsonl:4 = b.jsonl:2", "a.jsonl:2 = b.jsonl:3", "a.jsonl:4 = b.jsonl:5"]
    assert (second["between"], second["count"]) == (["validation", "test"], 1)
    assert told(result, "leaks") == [
        "3 of 5 validation rows repeat a training row (e.g. a.jsonl:4 = b.jsonl:2); "
        "figures on them say nothing about new data.",
        "1 of 2 test rows repeats a validation row (e.g. b.jsonl:4 = c.jsonl:2); "
        "figures on it are of rows that choose the weights.",
    ]
    assert [finding.level for finding in result.findings] == ["alarm", "alarm", "note"]  # with a copy in validation


def test_skipped_rows_are_counted_once_for_their_file(write, text_task, audit):
    source = write("a.jsonl", texts(f"text {i}" for i in range(20)) + "oops\n{\n")
    result = audit(text_task, source, validation=0.1, on_error="skip")
    assert [split.skipped.count for split in result.splits.values()] == [2, 0]
    [text] = told(result)
    assert text.startswith("a.jsonl: 2 malformed rows")
    assert "a.jsonl:21: " in text


def test_semicolons_between_fields_are_reported(write, text_task, audit):
    source = write("a.csv", "text;n\n" + "".join(f"text {i};{i}\n" for i in range(30)))
    result = audit(text_task, source, validation=0.1)
    said = "a.csv is read with semicolons (;) between fields, as its header has them and no comma."
    assert [finding.text for finding in result.findings if finding.source == "reading"] == [said]
    plain = audit(text_task, write("b.csv", "text,n\n" + "".join(f"text {i},{i}\n" for i in range(30))))
    assert [finding for finding in plain.findings if finding.source == "reading"] == []


def test_a_split_of_quite_another_size_than_asked_for_is_found(write, text_task, audit):
    result = audit(text_task, write("a.jsonl", texts("a" * 60 + "b" * 40)), validation=0.1)
    [text] = told(result, "reading")
    assert "40 of 100 rows (40 %) where 10 %" in text


def test_equal_texts_with_two_labels_are_contradictions(write, label_task, audit):
    rows = [("a", "x"), ("b", "x"), ("a", "y"), ("c", "y"), ("a", "x"), ("b", "x")]
    result = audit(label_task, labelled(write, "a.jsonl", rows))
    [torn] = [finding for finding in result.findings if finding.source == "contradictions"]
    assert "1 text has more than one label in the data (3 rows, 50 % of all, e.g. a.jsonl:1 ≠ a.jsonl:3)" in torn.text
    assert (torn.level, {"quality", "learning"} <= {*torn.explains}) == ("alarm", True)
    more = [(f"text {i}", "x") for i in range(20)]
    [torn] = [f for f in audit(label_task, labelled(write, "b.jsonl", rows + more)).findings if f.source == torn.source]
    assert (torn.level, torn.explains) == ("alarm", ())


def contradictions(result):
    return [finding.figures["texts"] for finding in result.findings if finding.source == "contradictions"]


def test_the_same_words_with_two_labels_are_contradictions(write, label_task, audit):
    rows = [("It is  good.", "x"), ("it is good", "y"), ("Bad\n", "x"), ("bad!", "x"), ("3 + 4", "x"), ("3 - 4", "y")]
    assert contradictions(audit(label_task, labelled(write, "a.jsonl", rows))) == [1]


def test_labels_that_differ_in_case_or_white_space_only_are_found(write, label_task, audit):
    train = labelled(write, "a.jsonl", [(f"t{i}", ["new  car", "bus", "New car"][i % 3]) for i in range(60)])
    assert told(audit(label_task, train)) == [
        "Write a label in one way: 'New car' (20) and 'new  car' (20) differ in case or white space only, and count "
        "as classes. Are they one?"
    ]


def test_rare_and_missing_labels_are_found(write, label_task, audit):
    train = [(f"x {i}", "often") for i in range(30)] + [(f"y {i}", "seldom") for i in range(3)] + [("z", "once")]
    held = labelled(write, "b.jsonl", [("p", "often"), ("q", "seldom")])
    result = audit(label_task, labelled(write, "a.jsonl", train), validation=held)
    assert told(result) == [
        "In training, 2 of 3 labels occur fewer than 10 times, the rarest, 'once', once; too few to learn them well.",
        "No validation row has label 'once'; figures say nothing about it.",
    ]
    rows = (("often", 30, 1), ("seldom", 3, 1), ("once", 1, 0))
    assert result.displays == (Table(title="Labels", columns=("label", "train", "validation"), rows=rows),)


def test_what_looks_wrong_is_counted_with_its_place(write, text_task, audit):
    rows = [f"plain sentence number {i} of an ordinary length" for i in range(60)]
    rows += ["  ", "=" * 40, "no no no no no no"]
    rows += ["caf\u00c3\u00a9", "a\ufffdb", "bell\x07", "p\u0430ypal", "x" * 4000, "y"]
    result = audit(text_task, write("a.jsonl", texts(rows)))
    assert told(result, "oddities") == [
        "1 of 69 training rows has no text but white space (e.g. a.jsonl:61).",
        "3 of 69 training rows have nothing but one character or word, repeated (e.g. a.jsonl:62).",
        "4 of 69 training rows have a length far below that of most (e.g. a.jsonl:64).",
        "1 of 69 training rows has a length far above that of most (e.g. a.jsonl:68).",
        "1 of 69 training rows has control characters (e.g. a.jsonl:66).",
        "1 of 69 training rows has letters of two scripts within a word (e.g. a.jsonl:67).",
    ]
    assert [finding.places for finding in result.findings if finding.source == "mojibake"] == [
        ("a.jsonl:64",),
        ("a.jsonl:65",),
    ]


NEAR = "the committee met again on monday to discuss the budget of the town and the roads around it"


def test_near_duplicates_across_files_are_refused_where_the_recipe_says_so(write, text_task, audit):
    """One near duplicate once ended the command by default, though nobody had asked for that."""
    train = write("a.jsonl", texts([NEAR, *(f"row {i}" for i in range(200))]))
    held = write("b.jsonl", texts([f"{NEAR} again", *(f"other {i}" for i in range(200))]))

    def look(**options):
        found = audit(text_task, train, validation=held, **options).findings
        return [finding for finding in found if finding.source == "leaks" and finding.level != "good"]

    [finding] = look()
    assert finding.level == "note"
    assert "1 of 201 validation rows nearly repeats a training row" in finding.text
    assert any("1 of 201 training rows is left out, as it is" in finding.text for finding in look(leaks="drop"))
    with raises(DataError, "data.leaks: fail"):
        look(leaks="fail")
