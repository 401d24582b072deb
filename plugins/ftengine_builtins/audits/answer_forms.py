"""Audit `answer-forms`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, listed, number, percent, quoted
from ftengine_builtins.audits.contradictions import LOOKED_AT
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within
from ftengine_builtins.audits.one_answer import any_answer
from ftengine_builtins.audits.surface import CLOSING, SPEAKER

MOST_ROWS, FEWEST = 5_000, 40
"""Training rows that are looked at, the first, and distinct answers below which nothing is said."""
ROLES = frozenset({
    "user", "human", "customer", "client", "caller", "question", "q", "instruction", "prompt", "student",
    "patient", "you", "me", "assistant", "agent", "bot", "ai", "gpt", "chatgpt", "answer", "a", "response",
    "model", "system", "teacher", "doctor",
})  # fmt: skip
"""Names of speakers, in lower case; two others are speakers where one of them has several lines of an answer."""
FIELDS = frozenset({"input", "output", "example", "explanation", "note"})
"""Names, in lower case, of the parts of a task or a text, which also stand in several lines of an answer."""
NOTE, ALARM = 0.02, 0.2
"""Share of the answers, near end, that run on into other turns, for a note and for an alarm."""
TWICE = 0.1
"""Share of the answers in which a mark has several lines, from which it is of a speaker whatever its name."""
CUT, LONGER, SURE = 0.1, 3.0, 1e-6
"""Share of the answers, near end, that stop without an end of a sentence; how many times as frequent that is among the
longer half; and the probability by chance (Fisher) up to which longer answers are cut. Whoever writes no full stops
leaves them out of short answers first."""
NARROW, ONE_LENGTH = 1.6, 1.1
"""Ratio of the longest tenth of the unfinished answers to the shortest, in characters or words, up to which they stop
at one length, and the same where hardly any answer is finished."""
FEWEST_WORDS = 8
"""Words that half of the unfinished answers have, at least: names and codes have no end of a sentence."""


class AnswerForms(Audit):
    """Finds free training answers that run on into other turns of a conversation, or that are cut at one length."""

    name = "answer-forms"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        rows = data.splits["train"]
        if not any(any_answer(view) for view in islice(rows, LOOKED_AT)):
            return
        answers: dict[str, int] = {}
        for i, view in enumerate(islice(rows, MOST_ROWS)):
            answer = any_answer(view)
            answer = answer[-1] if isinstance(answer, list) and answer else answer
            if isinstance(answer, str) and answer.strip():
                answers.setdefault(answer.strip(), i)
        if len(answers) >= FEWEST:
            yield from _run_on(data, [*answers], [*answers.values()])
            yield from _cut(data, [*answers], [*answers.values()])


def _run_on(data: AuditedData, answers: Sequence[str], rows: Sequence[int]) -> Iterator[Finding]:
    """Find answers in which lines of other speakers follow; an answer that begins with one is a dialogue as asked."""
    marks = [[] if SPEAKER.match(answer) else _marks(answer) for answer in answers]
    of_rows = Counter(mark for found in marks for mark in set(found))
    speakers = {mark for mark, _ in of_rows.most_common(2)}
    again = sum(
        len(speakers) > 1 and speakers <= {*found} and any(found.count(mark) > 1 for mark in speakers)
        for found in marks
    )
    named = {mark for mark in speakers if _name(mark) in ROLES}
    if again < TWICE * len(answers) and len(named) < len(speakers):
        return
    inside = [i for i, found in enumerate(marks) if not speakers.isdisjoint(found)]
    share = share_within(len(inside), len(answers))[0] if inside else 0.0
    if share < NOTE:
        return
    shown = listed([quoted(mark) for mark in sorted(speakers, key=lambda mark: -of_rows[mark])])
    lead = f"end training answers before the next turn: {percent(len(inside) / len(answers))} of {len(answers):,} "
    lead += f"distinct ones run on into further turns ({shown})"
    text = (
        f"{capitalized(lead)}, so the model learns to write both sides. Divide them into messages, or cut them there."
    )
    yield _finding(data, lead, text, share >= ALARM, [rows[i] for i in inside], {"run_on": len(inside) / len(answers)})


def _marks(answer: str) -> list[str]:
    """Return the marks at the beginnings of lines that may be speakers'."""
    return [mark for mark in SPEAKER.findall(answer) if _name(mark) not in FIELDS]


def _name(mark: str) -> str:
    return mark.rstrip(":").lower()


def _cut(data: AuditedData, answers: Sequence[str], rows: Sequence[int]) -> Iterator[Finding]:
    """Find answers that stop in mid-sentence at one length, while shorter ones are finished."""
    open_ends = np.array([_is_unfinished(answer) for answer in answers])
    if share_within(int(open_ends.sum()), len(answers))[0] < CUT:
        return
    for unit, measure in (("characters", len), ("words", lambda answer: len(answer.split()))):
        lengths = np.array([measure(answer) for answer in answers], dtype=float)
        low, high = np.quantile(lengths[open_ends], (0.1, 0.9)).tolist()
        words = np.median([len(answers[i].split()) for i in np.flatnonzero(open_ends)])
        if words < FEWEST_WORDS or high > NARROW * low:
            continue
        if not (_is_of_the_longer(open_ends, lengths) or (open_ends.mean() > 1 - CUT and high <= ONE_LENGTH * low)):
            continue
        found = np.flatnonzero(open_ends)
        share, middle = len(found) / len(answers), float(np.median(lengths[found]))
        lead = f"export the answers of training again: {percent(share)} of {len(answers):,} distinct ones stop in "
        lead += f"mid-sentence, at about {number(middle, 0)} {unit}"
        text = f"{capitalized(lead)}, and shorter ones do not. Was a length limit set where they were made? A model "
        text += "learns to stop there."
        yield _finding(data, lead, text, True, [rows[i] for i in found], {"cut": share, "length": middle, "unit": unit})
        return


def _is_unfinished(answer: str) -> bool:
    """Say whether a text stops at a letter, a digit or a comma; one in brackets, code or markup does not."""
    last = answer.rstrip(CLOSING)[-1:]
    return last == answer[-1:] and (last.isalnum() or last in ",;-–—")


def _is_of_the_longer(open_ends: np.ndarray, lengths: np.ndarray) -> bool:
    """Say whether far more of the longer half stop in mid-sentence than of the shorter one."""
    from scipy.stats import fisher_exact

    longer = lengths > np.median(lengths) if (lengths > np.median(lengths)).sum() > len(lengths) / 4 else (
        lengths >= np.median(lengths)
    )  # fmt: skip
    counts = [[int((open_ends & side).sum()), int((~open_ends & side).sum())] for side in (longer, ~longer)]
    shares = [a / max(1, a + b) for a, b in counts]
    return bool(shares[0] >= LONGER * shares[1] and fisher_exact(counts, alternative="greater").pvalue <= SURE)


def _finding(
    data: AuditedData, lead: str, text: str, alarm: bool, rows: Sequence[int], figures: dict[str, object]
) -> Finding:
    return Finding(
        kind="data",
        level="alarm" if alarm else "note",
        text=text,
        brief=lead,
        explains=("quality", "learning", "rows", "over-fitting", "worse", "splits") if alarm else (),
        figures=figures,
        places=tuple(data.splits["train"].where(row) for row in rows[:SHOWN_PLACES]),
    )
