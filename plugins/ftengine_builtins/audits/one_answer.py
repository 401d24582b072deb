"""Audit `one-answer`."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, View
from ftengine.text import capitalized, comparable, listed, percent, quoted, short
from ftengine_builtins.audits.contradictions import LOOKED_AT, free_answer, hashed
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within

FEWEST = 20
"""Training rows with an answer, below which nothing is said."""
NOTE, ALARM = 0.8, 0.98
"""Share of the training rows that have one and the same answer, from which it is a note, and an alarm: nothing else
can be learnt, and a low loss says no more than that this answer was."""
STOCK, MANY, TIMES, SENTENCE = 0.1, 0.25, 10, 4
"""Shares of the training rows, near end, from which one sentence among answers that differ is a note and an alarm, how
many times as frequent as any other it is, and words that it has, at least."""
SAME_OPENING, STILL, MOST_ROWS = 0.5, 0.9, 5_000
"""Share of the distinct answers, near end, that begin with the same words, and of these that go on with the same one;
and training rows that are looked at, the first."""
OPENING, FEWEST_DISTINCT = 4, 40
"""Words with which many answers begin, or end, at least; and distinct answers below which none is looked for."""
OTHER_MODEL = re.compile(
    r"\bas an? (?:(?:ai|artificial intelligence|large) )?language model,? (?:i|my|trained|developed|created)\b"
    r"|\bi(?:'| a)m (?:just |only )?an? (?:(?:ai|large) )?language model\b|\bmy knowledge cutoff"
    r"|\b(?:(?:language|ai) model,?|i (?:was|am)|i'm) (?:[\w ]{0,30} )?(?:trained|developed|created|made) by openai\b",
    re.IGNORECASE,
)
"""What language models say of themselves; an assistant may well learn that it is one."""
SELDOM, NOT_SELDOM = 0.02, 0.1
"""Shares of the answers, near end, that say so, from which that is said and from which it is an alarm."""


class OneAnswer(Audit):
    """Finds one and the same free (or chosen) answer in nearly all training rows, or a sentence in many.

    Also answers that begin and end alike, and those in which another language model speaks of itself.
    """

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
            yield from _of_another_model(data)
            yield from _alike(data)
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


def _of_another_model(data: AuditedData) -> Iterator[Finding]:
    """Find answers in which a language model speaks of itself."""
    rows = data.splits["train"]
    found, answers = list[tuple[int, str]](), 0
    for i, view in enumerate(islice(rows, MOST_ROWS)):
        if (answer := any_answer(view)) is not None:
            answers += 1
            if said := OTHER_MODEL.search(_text(answer)):
                found.append((i, said[0]))
    share = share_within(len(found), max(1, answers))[0]
    if not found or share < SELDOM:
        return
    lead = f"leave out training answers of another language model: {percent(len(found) / answers)} of {answers:,} say "
    lead += f"such as {quoted(found[0][1])}"
    text = f"{capitalized(lead)}. The model learns to say so too, and to refuse what that one refused."
    alarm = share >= NOT_SELDOM
    explains = ("quality", "worse", "over-fitting") if alarm else ()
    yield Finding(kind="data", level="alarm" if alarm else "note", text=text, brief=lead, explains=explains,
                  figures={"of_another_model": len(found), "answers": answers},
                  places=tuple(rows.where(i) for i, _ in found[:SHOWN_PLACES]))  # fmt: skip


def _alike(data: AuditedData) -> Iterator[Finding]:
    """Find words with which most answers begin, or end, as those of a template are meant to."""
    answers = dict.fromkeys(
        " ".join(_text(answer).split())
        for view in islice(data.splits["train"], MOST_ROWS)
        if (answer := any_answer(view))
    )
    words = [text.split(" ") for text in answers]
    if len(words) < FEWEST_DISTINCT:
        return
    start, opening = _common(words)
    end, closing = _common([of[::-1] for of in words])
    if not (opening or closing):
        return
    share = max(start, end)
    typical = float(np.median([len(of) for of in words]))
    left = (len(opening) if start >= NOTE else 0) + (len(closing) if end >= NOTE else 0)
    shown = [f"begin with {quoted(short(' '.join(opening)))} ({percent(start)})"] if opening else []
    shown += [f"end with {quoted(short(' '.join(closing[::-1])))} ({percent(end)})"] if closing else []
    lead = f"check whether training answers have to be alike: of {len(words):,} distinct ones most {listed(shown)}"
    yield Finding(kind="data", level="note", text=f"{capitalized(lead)}; the model learns to answer all prompts so.",
                  brief=lead, figures={"alike": share, "words": left, "typical": typical})  # fmt: skip


def _common(words: Sequence[Sequence[str]]) -> tuple[float, list[str]]:
    """Return the share of the texts that begin with the same OPENING words or more, and these words; 0 if few do."""
    first = Counter(tuple(of[:OPENING]) for of in words if len(of) > OPENING)
    begun, count = first.most_common(1)[0] if first else ((), 0)
    if share_within(count, len(words))[0] < SAME_OPENING:
        return 0.0, []
    common, of = list(begun), [text for text in words if tuple(text[:OPENING]) == begun]
    while True:
        (further, times), *_ = Counter(tuple(text[len(common) : len(common) + 1]) for text in of).most_common(1)
        if not further or times < STILL * count:
            return count / len(words), common
        common += further
        of = [text for text in of if text[: len(common)] == common]


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
