"""Data for audits: rows after division into splits, as in a run."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from ftengine.api import AuditedData, Example
from ftengine.data.split import make_splits
from ftengine.run.recipe import DataSection
from ftengine.testing.models import CORPUS
from ftengine.testing.samples import NAMES, TEXTS, task_of


@contextmanager
def audited_rows(
    splits: Mapping[str, Sequence[Example]], head: str = "sequence-classification"
) -> Iterator[AuditedData]:
    """Yield the data that audits get for some rows; it is valid within the context.

    Args:
        splits: rows of JSON values: "train" and, optionally, "validation" and "test".
        head: head of the task for these rows.
    """
    task = task_of(head, splits["train"])
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, FTENGINE_CACHE=f"{folder}/cache"):
        files = {}
        for name, rows in splits.items():
            file = Path(folder) / f"{name}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            files[name] = str(file)
        divided = make_splits(DataSection.model_validate({"validation": None, "leaks": "warn", **files}), task, 0)
        task.labels = task.learn_labels(divided.mapping())
        yield divided.audited()


def clean() -> dict[str, list[Example]]:
    """Return faultless rows of texts with labels, in three splits."""
    draw, words = random.Random(0), sorted({word for line in CORPUS for word in line.split()})
    texts = [" ".join(draw.sample(words, 10)) for _ in range(30)]
    rows: list[Example] = [{"text": text, "label": NAMES[i % 3]} for i, text in enumerate(texts)]
    return {"train": rows[:18], "validation": rows[18:24], "test": rows[24:]}


def messy() -> dict[str, list[Example]]:
    """Return rows with the faults that audits look for.

    Copies, contradicting labels, a row of training in the test split, personal data, wrongly decoded text, another
    script, a rare label, a column that nobody reads, and one very long text.
    """
    rows = clean()
    train = rows["train"] + [dict(row) for row in rows["train"][:4]]
    train += [
        {"text": TEXTS[0], "label": NAMES[0]},
        {"text": TEXTS[0], "label": NAMES[1]},
        {"text": "Write to anna.smith@example.com or call +49 30 901820.", "label": NAMES[0], "id": 7},
        {"text": "The cafÃ© was closed, and the menÃ¼ was short.", "label": NAMES[1]},
        {"text": "Сегодня хорошая погода, и мы идём гулять в парк.", "label": NAMES[2]},
        {"text": "word " * 3_000, "label": NAMES[0]},
        {"text": "A label that no other row has.", "label": "rare"},
    ]
    return {"train": train, "validation": rows["validation"], "test": [*rows["test"], dict(rows["train"][0])]}
