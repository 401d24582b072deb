"""The data section of `ftengine plan`: short, and all of it in plain words."""

from __future__ import annotations

import json

from ftengine.cli.audit import audit_lines
from ftengine.data.split import make_splits
from ftengine.plugins.registry import Registry
from ftengine.run.recipe import DataSection


def test_an_audit_is_told_in_a_few_lines(tmp_path):
    rows = [{"text": f"text number {i} jane{i}@example.org", "label": "ab"[i % 2]} for i in range(40)]
    rows += [rows[0] | {"label": "b"}, {"text": " ", "label": "c"}]
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test.write_text(json.dumps(rows[5]) + "\n" + json.dumps(rows[6] | {"text": "other"}) + "\n")
    task = Registry().build("task", {"name": "text-classification"}, "task")
    section = DataSection(train=str(train), validation=None, test=str(test), leaks="drop")
    audit = make_splits(section, task, 0).audit
    percentiles = {"5": 1, "25": 2, "50": 3, "75": 4, "95": 1500, "99": 6, "100": 7}
    audit["lengths"] = {"train": {"percentiles": percentiles, "uncut": None, "limit": 2048, "truncated": 0}}
    assert audit_lines(audit, "tokens") == [
        ("labels", "train: a 20, b 20, c 1"),
        ("", "test: b 1, a 1"),
        (
            "lengths",
            "train: half have up to 3 tokens, 95 % up to 1,500, 99 % up to 6, the longest 7; the model takes 2,048",
        ),
    ]
    warned = " ".join(audit["warnings"])  # what is not in order is told there, with its place, and once
    told = ("distinct", "left out", "more than one label", "e-mail", "no text")
    assert [word for word in told if word not in warned] == [], warned
    assert [name for name, _ in audit_lines(audit, "images")] == ["labels", ""]


def lengths(**facts):
    at = {"50": 60, "95": 64, "99": 64, "100": 64}
    found = {"splits": {}, "near_duplicates": None, "leaks": [], "labels": {}}
    return dict(audit_lines(found | {"lengths": {"train": {"percentiles": at, "limit": 512} | facts}}, "tokens"))


def test_lengths_of_examples_that_are_cut_are_those_before_or_say_so():
    uncut = {"50": 80, "95": 300, "99": 700, "100": 900}
    assert lengths(truncated=3, uncut=uncut)["lengths"] == (
        "train: half have up to 80 tokens before cutting to 64, 95 % up to 300, 99 % up to 700, the longest 900; the "
        "model takes 512"
    )
    assert "up to 60 tokens after cutting, 95 % up to 64" in lengths(truncated=3, uncut=None)["lengths"]
    assert "up to 60 tokens, 95 %" in lengths(truncated=0, uncut=uncut)["lengths"]


def test_data_without_duplicates_is_said_to_have_none():
    splits = {name: {"duplicates": 0, "near_duplicates": 0} for name in ("train", "test")}
    found = {"splits": splits, "near_duplicates": {"threshold": 0.8}, "leaks": [], "labels": {}, "lengths": {}}
    assert audit_lines(found, "tokens") == [
        ("duplicates", "no row repeats another of its split, or nearly does; no held-out row is in training")
    ]
