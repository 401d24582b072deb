"""Columns that nothing reads are found, and a wide table costs little more than a narrow one."""

from __future__ import annotations

import json

from partly import partly

from ftengine.api import Features, SilentListener, Task
from ftengine.data.encoding import encode_split
from ftengine.data.read import read_rows
from ftengine.data.unread import find_unread
from ftengine.errors import DataError


@partly
class CountingTask(Task):
    """Reads a text, and the weight of each of its parts; counts what it is asked."""

    name = "counting"

    def __init__(self):
        super().__init__()
        self.asked = 0

    def encode(self, example, processor, *, max_length=None):
        self.asked += 1
        if not isinstance(example["parts"], list):
            raise DataError("no parts")
        upper = example["text"].upper()  # a task need not expect anything else than what data holds
        weights = [part["weight"] for part in example["parts"] if part.get("weight") is not None]
        return Features({"text": upper, "weights": weights}, length=1, weight=1, truncated=False)


def test_a_wide_tables_unread_columns_are_found_with_few_examples_encoded(write):
    noise = {f"feature_{i}": i for i in range(600)}
    rows = [{"text": f"t{i}", **noise, "parts": [{"weight": 1, "note": "x"}], "late": None} for i in range(20)]
    rows[7]["late"] = 1
    rows = read_rows(write("wide.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    task = CountingTask()
    split = encode_split("train", rows, task, None, None, on_error="fail", listener=SilentListener())
    task.asked = 0
    unread = find_unread(split, used=["feature_3"])
    assert set(unread) == {*noise, "late", "parts.note"} - {"feature_3"}
    assert (unread["late"], unread["feature_0"]) == ("wide.jsonl:8", "wide.jsonl:1")
    assert task.asked < 600
