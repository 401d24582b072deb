"""The data section of `ftengine plan`: what is in order, and the audits' tables."""

from __future__ import annotations

import json

from rich.console import Console

from ftengine.cli.plan import show_audit
from ftengine.data.audit import run_audits
from ftengine.data.split import make_splits
from ftengine.plugins.registry import Registry
from ftengine.run.recipe import DataSection


def printed(audit) -> list[str]:
    out = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_audit(out, audit)
    return [" ".join(line.split()) for line in out.export_text().splitlines() if line.strip()]


def test_what_is_in_order_and_tables_are_shown(tmp_path):
    rows = [{"text": f"text number {i} of j{i}@example.org", "label": f"{'ab'[i % 2]}@x.org"} for i in range(1200)]
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test.write_text(json.dumps(rows[0] | {"text": "other"}) + "\n")
    registry = Registry()
    task = registry.build("task", {"name": "text-classification"}, "task")
    splits = make_splits(DataSection(train=str(train), validation=None, test=str(test)), task, 0)
    at = {"5": 1, "25": 2, "50": 3, "75": 4, "95": 5, "99": 6}
    counts = {"percentiles": at, "longest": 1500, "truncated": 3, "limit": 2048}
    every = registry.entries("audit")
    cut = {"train": counts | {"untruncated": None}}
    audit = run_audits(splits.audited(), cut, every).model_dump(mode="json")
    assert printed(audit) == [
        "data No split holds duplicate or near-duplicate rows.",
        "data No held-out row is in training (1,201 texts of fewer than 16 words: word for word).",
        "Labels:",
        "label train test",
        "a…rg 600 1",
        "b…rg 600 0",
        "Lengths:",
        "split median 95 % 99 % longest truncated model limit",
        "train 3 5 6 1,500 3 2,048",
        "Lengths are those after cutting.",
    ]
    untruncated = counts | {"untruncated": {"50": 80, "95": 300, "99": 700, "100": 1900}}
    audit = run_audits(splits.audited(), {"train": untruncated}, every).model_dump(mode="json")
    assert printed(audit)[-2:] == [
        "train 80 300 700 1,900 3 2,048",
        "Lengths are those before cutting.",
    ]
    texts = [finding["text"] for finding in audit["findings"]]
    assert "3 of 1,200 training rows are cut to the length limit." in texts
