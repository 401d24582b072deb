"""Audit `contradictions`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, AuditedRows, Finding, View
from ftengine.text import capitalized, comparable, counted, percent
from ftengine_builtins.audits.counting import SHOWN_PLACES

ALARM = 0.02
"""Share of rows whose text also stands there with another label, from which it is an alarm."""
MANY = 0.2
"""Share of rows from which it is why a model learns little."""
MANY_ANSWERS = 10
"""Different answers to one prompt from which it is said, however few of the rows that is."""
LOOKED_AT = 1000
"""Rows of a split that show whether targets are sequences."""


class Contradictions(Audit):
    """Finds equal texts with different labels, of which one must be wrong, and equal prompts with different answers."""

    name = "contradictions"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        if not any(targets.any() for targets in data.targets.values()):
            yield from _answered_otherwise(data)
            return
        # Words that are written otherwise say the same of the whole, though not each of itself, as tags of words do.
        equal = data.distinct if data.same_words is None or tags_words(data) else data.same_words
        if clash := contradicting(data, equal, data.targets):
            share = clash.rows / sum(map(len, data.splits.values()))
            level = "alarm" if share >= ALARM and not are_numbers(data) else "note"
            many = level == "alarm" and share >= MANY
            brief = f"{counted(clash.texts, 'text has', 'texts have')} more than one label in the data "
            brief += f"({clash.rows:,} rows, "
            then = ""
            if many:
                brief = f"give each text its one label: {brief}{percent(share)} of all, "
                then = " Did a join repeat each row for every label of a customer, say, or are texts cut short?"
            brief += f"e.g. {clash.places[0]})"
            yield Finding(
                kind="labels",
                level=level,
                text=f"{capitalized(brief)}.{then}",
                brief=brief,
                explains=("quality", "learning", "classes", "calibration", "over-fitting", "worse") if many else (),
                figures={"texts": clash.texts, "rows": clash.rows, "share": share},
                places=clash.places,
            )


def are_numbers(data: AuditedData) -> bool:
    """Return whether targets are numbers, of which equal texts may rightly have several."""
    return any(isinstance(view.label, float) for rows in data.splits.values() for view in islice(rows, LOOKED_AT))


def _answered_otherwise(data: AuditedData) -> Iterator[Finding]:
    """Find equal inputs with different free answers, which may be right but cannot all be learnt."""
    if not any(free_answer(view) for rows in data.splits.values() for view in islice(rows, LOOKED_AT)):
        return
    hashes = {split: _inputs_and_answers(rows) for split, rows in data.splits.items()}
    prompts, replies = ({split: both[i] for split, both in hashes.items()} for i in (0, 1))
    clash, total = contradicting(data, prompts, replies), sum(int((answers != 0).sum()) for answers in replies.values())
    if not clash or (clash.rows < ALARM * total and clash.targets < MANY_ANSWERS):
        return
    text = f"{counted(clash.texts, 'prompt has', 'prompts have')} different answers in the data "
    text += f"({clash.rows:,} of {total:,} rows, one with {clash.targets:,} answers, e.g. {clash.places[0]}): the "
    text += "prompt alone does not determine the answer. A column that belongs in the prompt may be missing from it."
    figures = {"texts": clash.texts, "rows": clash.rows, "share": clash.rows / total, "answers": clash.targets}
    yield Finding(kind="data", level="note", text=text, figures=figures, places=clash.places)


def _inputs_and_answers(rows: AuditedRows) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows,) hashes of inputs and of free answers, 0 for no answer."""
    answers = ((view, free_answer(view)) for view in rows)
    pairs = ((hashed(list(view.inputs)), hashed(answer)) if answer else (0, 0) for view, answer in answers)
    hashes = np.fromiter(pairs, [("asked", np.int64), ("said", np.int64)], len(rows))
    return hashes["asked"], hashes["said"]


def free_answer(view: View) -> Any:
    """Return the free text that answers a row's input; None if there is none, or if it equals the input."""
    target = view.target
    if view.classes or not view.inputs or not target or not isinstance(target, (str, list)):
        return None
    return None if target in (view.inputs, view.inputs[0]) or not isinstance(view.inputs[0], str) else target


def hashed(value: Any) -> int:
    """Return a number other than 0 that is equal for values that differ in spelling alone."""
    digest = blake2b(repr(comparable(value)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1


def tags_words(data: AuditedData) -> bool:
    """Return whether targets are sequences with repeated values, such as a tag for each word."""
    targets = (view.target for rows in data.splits.values() for view in islice(rows, LOOKED_AT))
    return any(isinstance(x, (list, tuple)) and len(set(map(str, x))) < len(x) for x in targets)


@dataclass(frozen=True)
class Torn:
    """Texts with more than one target: their number, their rows, the most targets of one text, and places of pairs."""

    texts: int
    rows: int
    targets: int
    places: tuple[str, ...]


def contradicting(data: AuditedData, equal: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> Torn | None:
    """Find equal rows with unequal targets; None if there are none.

    Args:
        equal: for each split, (rows,) a number that rows of the same text share.
        targets: for each split, (rows,) numbers that are equal for equal targets, 0 without a target.
    """
    names = list(data.splits)
    text, target = (np.concatenate([of[name] for name in names]) for of in (equal, targets))
    known = np.flatnonzero(target)
    order = known[np.lexsort((known, text[known]))]
    first = order[np.searchsorted(text[order], text[order])]  # the first row of the same text
    differs = np.flatnonzero(target[order] != target[first])
    if not len(differs):
        return None
    torn, index = np.unique(text[order[differs]], return_index=True)  # the first row that differs, of each text
    pairs = sorted(zip(first[differs[index]].tolist(), order[differs[index]].tolist(), strict=True))
    inside = order[np.isin(text[order], torn)]
    answers = np.unique(np.stack([text[inside], target[inside]]), axis=1)[0]
    starts = np.cumsum([0, *(len(data.splits[name]) for name in names)])

    def where(row: int) -> str:
        split = int(np.searchsorted(starts, row, side="right")) - 1
        return data.splits[names[split]].where(row - int(starts[split]))

    places = tuple(f"{where(left)} ≠ {where(other)}" for left, other in pairs[:SHOWN_PLACES])
    return Torn(len(torn), len(inside), int(np.unique(answers, return_counts=True)[1].max()), places)
