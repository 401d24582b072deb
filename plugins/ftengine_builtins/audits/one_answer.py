"""Audit `one-answer`."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, View
from ftengine.text import capitalized, comparable, percent, quoted, short
from ftengine_builtins.audits.contradictions import LOOKED_AT, free_answer, hashed
from ftengine_builtins.audits.counting import share_within

FEWEST = 20
"""Training rows with an answer, below which nothing is said."""
NOTE, ALARM = 0.8, 0.98
"""Share of the training rows that have one and the same answer, from which it is a note, and an alarm: nothing else
can be learnt, and a low loss says no more than that this answer was."""
STOCK, MANY, TIMES, SENTENCE = 0.1, 0.25, 10, 4
"""Shares of the training rows, near end, from which one sentence among answers that differ is a note and an alarm, how
many times as frequent as any other it is, and words that it has, at least."""


class OneAnswer(Audit):
    """Finds one and the same free (or chosen) answer in nearly all training rows, or a sentence in many."""

    name = "one-answer"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        rows = data.splits["train"]
        if not any(any_answer(view) for view in islice(rows, LOOKED_AT)):
            return
        numbers = np.fromiter(
            (hashed(_plain(answer)) if (answer := any_answer(view)) else 0 for view in rows), np.int64
        )
        kinds, counts = np.unique(numbers[numbers != 0], return_counts=True)
        if counts.sum() < FEWEST:
            return
        if counts.max() < NOTE * counts.sum():
            yield from _stock_answer(data, numbers, kinds, counts)
            return
        count, total = int(counts.max()), int(counts.sum())
        first = int(np.flatnonzero(numbers == kinds[counts.argmax()])[0])
        share, alarm = count / total, count >= ALARM * total
        shown = quoted(_text(any_answer(next(islice(rows, first, None)))))
        lead = f"check the answers of training: {percent(share)} of {total:,} are one text ({shown})"
        also = f"; {len(kinds):,} are distinct" if len(kinds) > 1 else ""
        text = f"{lead[:1].upper()}{lead[1:]}{also}, so that hardly anything else can be learnt."
        yield Finding(
            kind="data",
            level="alarm" if alarm else "note",
            text=text,
            brief=lead,
            explains=("quality", "learning", "rows", "labels", "over-fitting", "memorisation", "worse"),
            figures={"share": share, "low": share_within(count, total)[0], "distinct": len(kinds), "answers": total},
            places=(rows.where(first),),
        )


def _stock_answer(data: AuditedData, numbers: Any, kinds: Any, counts: Any) -> Iterator[Finding]:
    """Find a sentence that many answers are while hardly two others are equal, such as a refusal."""
    rows, order = data.splits["train"], np.argsort(-counts, kind="stable")
    count, total = int(counts[order[0]]), int(counts.sum())
    share = share_within(count, total)[0]
    if share < STOCK or len(kinds) < FEWEST or count < TIMES * counts[order[1]]:
        return
    first = int(np.flatnonzero(numbers == kinds[order[0]])[0])
    answer = _text(any_answer(next(islice(rows, first, None))))
    if len(answer.split()) < SENTENCE:
        return
    lead = (
        f"check whether {percent(count / total)} of the training answers have to be one text: {quoted(short(answer))}"
    )
    text = f"{capitalized(lead)} is the answer of {count:,} of {total:,} rows, the next most frequent one of "
    text += f"{int(counts[order[1]]):,}. A model that learns it gives it to other prompts too."
    alarm = share >= MANY
    explains = ("quality", "learning", "rows", "over-fitting", "memorisation", "worse") if alarm else ()
    yield Finding(kind="data", level="alarm" if alarm else "note", text=text, brief=lead, explains=explains,
                  figures={"share": count / total, "low": share, "answers": total},
                  places=(rows.where(first),))  # fmt: skip


def any_answer(view: View) -> Any:
    """Return the free answer to a row's input, of two answers the chosen one; None if there is none."""
    target = view.target
    if not view.classes and isinstance(target, dict) and "chosen" in target:
        return target["chosen"]
    return free_answer(view)


def _plain(answer: Any) -> Any:
    """Return an answer without case and surrounding white space."""
    texts = answer if isinstance(answer, list) else [answer]
    return [comparable(text).strip().casefold() if isinstance(text, str) else text for text in texts]


def _text(answer: Any) -> str:
    """Return an answer in one line; of several turns the last."""
    answer = answer[-1] if isinstance(answer, list) and answer else answer
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
