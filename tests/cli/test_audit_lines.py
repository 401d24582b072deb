"""The data section of `ftengine plan`: short, and all of it in plain words."""

from __future__ import annotations

import json

from ftengine.cli.audit import audit_lines
from ftengine.data.split import make_splits
from ftengine.recipe import DataSection
from ftengine.registry import Registry


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
    audit["lengths"] = {"train": {"percentiles": percentiles, "limit": 2048, "truncated": 0}}
    assert audit_lines(audit, "tokens") == [
        (
            "duplicates",
            "1 of 43 rows repeat another of their split; 0 nearly do (similarity ≥ 0.8); 1 held-out rows are (nearly) "
            "in training too, for which 1 rows of training are left out; 1 examples with contradicting labels",
        ),
        ("labels", "train: a 20, b 20, c 1"),
        ("", "test: b 1, a 1"),
        (
            "lengths",
            "train: half have up to 3 tokens, 95 % up to 1,500, 99 % up to 6, the longest 7; the model takes 2,048",
        ),
        ("oddities", "train: 1 empty, 40 with likely personal data (e-mail)"),
        ("", "test: 1 with likely personal data (e-mail)"),
    ]
    assert [name for name, _ in audit_lines(audit, "images")] == ["duplicates", "labels", "", "oddities", ""]
