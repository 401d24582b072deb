"""Rows of embeddings: the columns of each kind, their other names, and which texts are equal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from ftengine.api import Example, Recognised
from ftengine.errors import DataError, column_names, did_you_mean, shown
from ftengine_builtins.tasks.class_labels import as_number, read_name
from ftengine_builtins.tasks.language_rows import read_text
from ftengine_builtins.tasks.recognising import SCORES, TEXTS, first_of, kind_option, label_of, renamed

PARTS: Mapping[str, tuple[str, ...]] = {
    "pairs": ("anchor", "positive"),
    "triplets": ("anchor", "positive", "negative"),
    "scored": ("sentence1", "sentence2"),
    "labelled": ("text",),
}
"""Columns of texts, by kind of row: the first is the query."""

BESIDE: Mapping[str, tuple[str, ...]] = {"scored": ("score",), "labelled": ("label",)}
"""Further columns that a kind of row has."""

DOCUMENTS = ("positive", "negative", "document")
"""Columns whose texts get the prompt of documents."""

ORIGINAL = "ids of the original texts"
"""Key under which a row of changed texts keeps what tells equal ones."""

READ_TOGETHER = (
    "The cosine of two vectors is to follow the score. A model that reads both texts together, more slowly and mostly "
    "more exactly, is trained by `--task text-classification`."
)
TRIPLETS_READ_TOGETHER = (
    "Vectors of the texts are trained. A model that reads query and document together, to order what was found more "
    "exactly, is trained by `--task reranking`."
)
"""What else scored pairs, and triplets, are for."""
LISTS_READ_TOGETHER = (
    "Vectors are trained by one positive and one negative text of a row: lists, and further columns of negatives, are "
    "not read. A model that reads query and document together learns from all of them: `--task reranking`."
)
"""What rows of several documents are for."""
NUMBERED = re.compile(r"negative_\d+")
"""Columns of further negatives."""

NAMES = {
    "anchor": ("anchor", "query"),
    "positive": ("positive", "pos", "document", "passage", "doc"),
    "negative": ("negative", "neg", "hard_negative", "negative_passage"),
    "sentence1": ("sentence1", "text1", "sentence_a"),
    "sentence2": ("sentence2", "text2", "sentence_b"),
    "score": SCORES,
}

LISTED = {name: (*NAMES[name], f"{name}s") for name in ("positive", "negative")}
"""What columns are called that may hold lists."""


def recognise_embedding(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """Recognise anchor and positive, with an optional negative; two sentences and their score; text and label."""
    by_name = {ours: theirs for ours, names in NAMES.items() if (theirs := first_of(names, columns)) is not None}
    label = label_of(columns, rows)
    if label not in (None, by_name.get("score")) and not {"anchor", "positive"} <= set(columns):
        # A classifier is for pairs of which some do not belong together, and first for labelled texts.
        return None if {"anchor", "sentence1"} & by_name.keys() else _recognise_labelled(columns, label, rows)
    for kind, certainty in (("triplets", 3), ("pairs", 3), ("scored", 2)):
        needed = (*PARTS[kind], *BESIDE.get(kind, ()))
        if by_name.keys() >= set(needed):
            chosen = {ours: by_name[ours] for ours in needed}
            texts = [row.get(chosen[part]) for row in rows for part in PARTS[kind]]
            scores = [row.get(chosen["score"]) for row in rows] if kind == "scored" else []
            fits = all(isinstance(text, str) for text in texts if text is not None)
            if fits and all(as_number(score) is not None for score in scores if score is not None):
                note = TRIPLETS_READ_TOGETHER if kind == "triplets" else ""
                if kind == "scored" and "kind" in kind_option(chosen["score"], rows):
                    certainty, note = 3, READ_TOGETHER
                elif kind != "scored" and have_several(columns, rows):
                    certainty, note = 2, LISTS_READ_TOGETHER
                return Recognised(certainty, renamed(**chosen), {} if kind == "pairs" else {"rows": kind}, note=note)
    return None


def have_several(columns: Sequence[str], rows: Sequence[Example]) -> bool:
    """Return whether rows have lists of documents, or more columns of negatives than a triplet."""
    named = [column for names in LISTED.values() if (column := first_of(names, columns)) is not None]
    lists = (is_list(row.get(column)) for row in rows for column in named)
    return any(map(NUMBERED.fullmatch, columns)) or any(lists)


def is_list(value: Any) -> bool:
    """Return whether a value is a list, or a table's cell with a list of texts, as JSON or a Python literal."""
    if not isinstance(value, str):
        return isinstance(value, (list, tuple))
    text = value.strip()
    inner = text[1:-1].strip()
    return text[:1] == "[" and text[1:][-1:] == "]" and (not inner or (inner[0] in "'\"" and inner[-1] in "'\""))


def _recognise_labelled(columns: Sequence[str], label: str, rows: Sequence[Example]) -> Recognised | None:
    text = first_of(TEXTS, [column for column in columns if column != label])
    values = [(row.get(text), row.get(label)) for row in rows if text is not None]
    if not values or not all(isinstance(text, str) and isinstance(name, (str, int)) for text, name in values):
        return None
    return Recognised(1, renamed(text=text, label=label), {"rows": "labelled"})


def check_columns(columns: Sequence[str], kind: str) -> None:
    """Raise DataError, which lists the kinds, if columns for a kind of row are missing."""
    needed = (*PARTS[kind], *BESIDE.get(kind, ()))
    if missing := [name for name in needed if name not in columns]:
        fitting = [other for other in PARTS if {*PARTS[other], *BESIDE.get(other, ())} <= set(columns)]
        advice = f"Set task.rows={fitting[0]}" if fitting else "Rename one with data.columns"
        kinds = "; ".join(f"{layout}: {', '.join((*PARTS[layout], *BESIDE.get(layout, ())))}" for layout in PARTS)
        raise DataError(
            f"the data has no column {missing[0]!r} (columns: {column_names(columns) or 'none'}), which rows of kind "
            f"{kind!r} have. {advice}. Kinds: {kinds}." + did_you_mean(missing[0], columns)
        )


def texts_of(row: Example, kind: str) -> dict[str, str]:
    """Return the texts of a row by column (DataError: one is missing, no text, or empty)."""
    return {name: read_text(row, name) for name in PARTS[kind]}


def original_ids(row: Example, texts: Iterable[str]) -> list[int]:
    """Return ids that are equal for equal texts, of the row's texts before augmentation."""
    return row.get(ORIGINAL) or [id_of(text) for text in texts]


def read_score(row: Example, highest: float, *, cosine: bool) -> float:
    """Return the score of a pair as a share of the highest (DataError: no number, or not in the range of a cosine)."""
    score = as_number(row.get("score"))
    if score is None:
        raise DataError(f"`score` is {shown(row.get('score'))}; it must be a number.")
    if cosine and not -1 <= score / highest <= 1:
        raise DataError(
            f"`score` is {score:g}, but loss cosine compares score / {highest:g} (task.highest_score) with a cosine, "
            "which is from -1 to 1. Set task.highest_score to the highest possible score, or task.loss=cosent."
        )
    return score / highest


def require_pairs(rows: Iterable[Example]) -> None:
    """Refuse labelled texts without two of one label (DataError)."""
    counts = Counter(read_name(value) for row in rows if (value := row.get("label")) is not None)
    if len(counts) < 2:
        labels = f"only the label {next(iter(counts))!r}" if counts else "no label"
        raise DataError(f"the training data has {labels} in column 'label'; at least two labels are needed.")
    if max(counts.values()) < 2:
        raise DataError(
            f"each of the {len(counts):,} labels of the training data has only one row, so no two texts belong "
            "together. Give at least two rows for a label, or rows of anchor and positive (task.rows=pairs)."
        )


def id_of(text: Any) -> int:
    """Return a number that is equal for equal texts: 63 bits of a hash."""
    return int.from_bytes(blake2b(str(text).encode(), digest_size=8).digest(), "big") >> 1
