"""data.exclude: the listed rows are left out and counted, and a list that does not fit the data is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expected import raises

from ftengine.data.split import make_splits
from ftengine.errors import DataError
from ftengine.run.recipe import DataSection

COUNT = 20


@pytest.fixture
def section(write):
    rows = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(COUNT))
    return DataSection(train=write("a.jsonl", rows), validation=0.2)


def excluding(section, write, places, task, **change):
    """Return the section with a file that excludes some places of the data as it is."""
    every = {
        rows.where(i): rows.content_hash(i)
        for rows in make_splits(section, task, 0).mapping().values()
        for i in range(len(rows))
    }
    entries = [{"place": place, "sha256": every[place], "reason": "wrong", **change} for place in places]
    listed = write("excluded.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    return section.model_copy(update={"exclude": listed})


def test_listed_rows_are_left_out_and_counted(section, write, text_task):
    chosen = excluding(section, write, ["a.jsonl:3", "a.jsonl:7"], text_task)
    splits = make_splits(chosen, text_task, 0)
    texts = {row["text"] for rows in splits.mapping().values() for row in rows}
    assert texts == {f"text {i}" for i in range(COUNT)} - {"text 2", "text 6"}
    assert sum(rows.excluded for rows in splits.mapping().values()) == 2
    facts = splits.audited().facts
    assert sum(split["excluded"] for split in facts["splits"].values()) == 2
    assert facts["sources"][0]["excluded"] == 2


def test_a_list_from_another_folder_names_the_same_rows(section, write, text_task):
    chosen = excluding(section, write, ["a.jsonl:3"], text_task, place="data/a.jsonl:3")
    assert sum(map(len, make_splits(chosen, text_task, 0).mapping().values())) == COUNT - 1


def test_of_two_files_of_one_name_the_row_with_the_content_is_left_out(section, write, text_task):
    Path("held").mkdir()
    held = write("held/a.jsonl", "".join(json.dumps({"text": f"held {i}"}) + "\n" for i in range(COUNT)))
    chosen = excluding(section.model_copy(update={"validation": held}), write, ["a.jsonl:3", "a.jsonl:3"], text_task)
    splits = make_splits(chosen, text_task, 0).mapping()
    assert (len(splits["train"]), len(splits["validation"])) == (COUNT - 1, COUNT)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"place": "a.jsonl:99"}, ("excluded.jsonl:1", "a.jsonl:99")),
        ({"place": "b.jsonl:3"}, ("excluded.jsonl:1", "b.jsonl:3")),
        ({"sha256": "0"}, ("excluded.jsonl:1", "a.jsonl:3", "changed")),
        ({"sha256": 0}, ("excluded.jsonl:1",)),
    ],
    ids=str,
)
def test_a_list_that_does_not_fit_the_data_is_refused(section, write, text_task, change, facts):
    chosen = excluding(section, write, ["a.jsonl:3"], text_task, **change)
    with raises(DataError, *facts):
        make_splits(chosen, text_task, 0)


def test_a_list_of_every_row_or_none_that_exists_is_refused(section, write, text_task):
    every = excluding(section, write, [f"a.jsonl:{i + 1}" for i in range(COUNT)], text_task)
    with raises(DataError, "data.exclude"):
        make_splits(every, text_task, 0)
    with raises(DataError, "data.exclude", "nowhere.jsonl"):
        make_splits(section.model_copy(update={"exclude": "nowhere.jsonl"}), text_task, 0)
