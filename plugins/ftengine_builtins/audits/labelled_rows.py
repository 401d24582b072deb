"""Rows of a split with their labels and those of their neighbours, for audits that compare both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import AuditedData, Finding, View
from ftengine_builtins.audits.counting import split_name
from ftengine_builtins.audits.split_shift import EXPLAINED, shortened
from ftengine_builtins.audits.word_scores import choose_rows
from ftengine_builtins.label_blocks import Block, find_block
from ftengine_builtins.label_fit import Offset, confusion_of, find_number_offset, find_offset

SAMPLE = 700
"""Distinct rows of a split that are looked at; the time grows with the cube of those of training, 0.3 seconds of these
on one core."""
MOST_LABELS = 100
OFFSETS = (0, -1, 1, -2, 2, -3, 3)
"""Rows whose labels are tried, from the row itself."""


@dataclass(frozen=True)
class Labelled:
    """Rows of a split: texts, and the labels of the rows and of their neighbours.

    Args:
        labels: for each offset, 0 first, (n,) numbers of labels, -1 for none; or target numbers, nan for none.
        names: of the labels; empty for numbers.
        places: (n,) numbers of the rows in their split, from 0.
    """

    texts: list[str]
    labels: dict[int, np.ndarray]
    names: tuple[str, ...]
    places: np.ndarray

    @property
    def numbers(self) -> bool:
        return not self.names

    def targets(self, offset: int = 0) -> np.ndarray:
        """Return (n, labels) zeros and ones, or (n, 1) numbers; a missing label is all 0, or the mean."""
        labels = self.labels[offset]
        if self.numbers:
            known = labels[~np.isnan(labels)]
            return np.where(np.isnan(labels), known.mean() if len(known) else 0.0, labels)[:, None]
        return np.vstack([np.eye(len(self.names)), np.zeros(len(self.names))])[labels]

    def select(self, rows: np.ndarray) -> Labelled:
        """Return some rows with their own labels."""
        return Labelled([self.texts[i] for i in rows], {0: self.labels[0][rows]}, self.names, self.places[rows])

    def confusion(self, answers: np.ndarray) -> np.ndarray:
        """Return (labels, labels) counts: labels by the largest of (n, labels) answers."""
        return confusion_of(self.labels[0], answers.argmax(1), len(self.names))

    def find_offset(self, answers: Mapping[int, np.ndarray]) -> Offset | None:
        """Return the offset of the rows whose labels fit (n, labels) answers, or (n, 1) numbers, better."""
        if self.numbers:
            return find_number_offset({x: of[:, 0] for x, of in answers.items()}, self.labels)
        return find_offset({x: of.argmax(1) for x, of in answers.items()}, self.labels, len(self.names))

    def find_block(self, answers: np.ndarray) -> Block | None:
        """Return the block of rows in which neighbours' labels fit (n, labels) answers, or (n, 1) numbers, better."""
        return find_block(answers[:, 0] if self.numbers else answers.argmax(1), self.labels, len(self.names))


def labelled(data: AuditedData, split: str) -> Labelled | None:
    """Sample distinct rows with a text and one label or number; None if rows have none."""
    rows, known = data.splits[split], data.targets[split]
    looked = next((view for view in rows if view.label is not None), None)
    if looked is None or isinstance(looked.label, (list, tuple, dict)) or not _text(looked):
        return None
    chosen = choose_rows(data.distinct[split], known != 0, SAMPLE)
    numbers = isinstance(looked.label, float)
    texts, places, values = [], [], []
    for i, view in enumerate(rows):
        if numbers:
            values.append(view.label if isinstance(view.label, float) else math.nan)
        if i in chosen and (text := _text(view)):
            texts.append(text)
            places.append(i)
    given, names = (np.array(values), ()) if numbers else _numbered(data, split)
    if not texts or (not numbers and not 2 <= len(names) <= MOST_LABELS):
        return None
    beyond = np.full(max(OFFSETS), np.nan if numbers else -1)
    padded, at = np.concatenate([beyond, given, beyond]).astype(given.dtype), np.array(places) + len(beyond)
    return Labelled(texts, {offset: padded[at + offset] for offset in OFFSETS}, names, np.array(places))


def _text(view: View) -> str:
    """Return the text that predicts a label; "" if the input is not text."""
    return shortened(" ".join(part for part in view.inputs if isinstance(part, str)).strip())


def _numbered(data: AuditedData, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (rows,) numbers of a split's labels, -1 for those unknown to training, and training's labels."""
    known, first = np.unique(data.targets["train"], return_index=True)
    first, known = first[known != 0], known[known != 0]
    at = dict.fromkeys(first.tolist(), "")
    for i, view in enumerate(islice(data.splits["train"], max(at, default=-1) + 1)):
        if i in at:
            at[i] = ", ".join(view.labels)
    place = np.minimum(np.searchsorted(known, data.targets[split]), max(0, len(known) - 1))
    ids = np.where(known[place] == data.targets[split], place, -1) if len(known) else np.full(len(place), -1)
    return ids.astype(np.int64), tuple(at.values())


Answered = tuple[Labelled, np.ndarray]
"""Rows, and (n, labels) or (n, 1) answers of a classifier that has not seen their labels."""


def misplaced(split: str, fit: str, then: str, figures: dict[str, Any], lead: str = "") -> Finding:
    lead = lead or f"check whether labels of {split_name(split)} rows belong to them"
    return Finding(
        kind="splits",
        level="alarm",
        text=f"{lead[:1].upper()}{lead[1:]}: {fit}. {then}",
        brief=f"{lead}: {fit}",
        explains=EXPLAINED,
        figures={"split": split, **figures},
    )
