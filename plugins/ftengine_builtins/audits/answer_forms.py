"""Audit `answer-forms`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, listed, number, percent, quoted
from ftengine_builtins.audits.contradictions import LOOKED_AT
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within
from ftengine_builtins.audits.row_parts import ANSWERS, last_prompt, parts_of
from ftengine_builtins.audits.surface import CLOSING, SPEAKER
from ftengine_builtins.audits.word_scores import TOKEN

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
LIMITS, SPIKE, IN_SENTENCE, ALL = {"characters": (2, 40), "words": (1, 15)}, 4, 0.5, 0.95
"""For each unit the lengths that count as one and the least that is a limit; how many times as many unfinished answers
as at the lengths around end there, which share of the answers there is unfinished, and the share of all answers from
which these are of one form instead, if they are less than twice as long as the least limit."""
PARTS = {ANSWERS: True, "prompts": True, "rejected answers": True, "positives": False}
"""Texts of which a common length is looked for, and whether it is an alarm: passages may be windows of a text."""
PROMPT, ECHOED, ECHOED_ALARM = 4, 0.5, 0.8
"""Words of a prompt that is looked for in answers, at least; the share of answers to such prompts, near end, that begin
with it, from which it is said, and from which it is an alarm."""
FEWEST_WORDS = 8
"""Words that half of the unfinished answers have, at least: names and codes have no end of a sentence."""


class AnswerForms(Audit):
    """Finds training answers that run on into other turns or rows, repeat their prompts, or are cut at one length."""

    name = "answer-forms"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        rows = data.splits["train"]
        if not any(PARTS.keys() & parts_of(view).keys() for view in islice(rows, LOOKED_AT)):
            return
        texts: dict[str, dict[str, int]] = {what: {} for what in PARTS}
        prompts: dict[str, str] = {}
        for i, view in enumerate(islice(rows, MOST_ROWS)):
            parts = parts_of(view)
            for what in PARTS.keys() & parts.keys():
                texts[what].setdefault(parts[what].strip(), i)
            if ANSWERS in parts:
                prompts.setdefault(parts[ANSWERS].strip(), last_prompt(view, ""))
        answers, places = [*texts[ANSWERS]], [*texts[ANSWERS].values()]
        if len(answers) >= FEWEST:
            yield from _run_on(data, answers, places)
            yield from _with_prompts(data, prompts, places)
            yield from _cut(data, answers, places)
        for what, found in texts.items():
            if what != ANSWERS and len(found) >= FEWEST:
                yield from _cut_alike(data, what, [*found], [*found.values()])


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


def _with_prompts(data: AuditedData, prompts: Mapping[str, str], rows: Sequence[int]) -> Iterator[Finding]:
    """Find answers that begin with their own prompt, and answers in which another row's prompt follows.

    Args:
        prompts: the prompt of each distinct answer.
    """
    words = {text: tuple(TOKEN.findall(text.casefold())) for text in (*prompts, *prompts.values())}
    starting: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for prompt in prompts.values():
        if len(words[prompt]) >= PROMPT:
            starting.setdefault(words[prompt][:PROMPT], set()).add(words[prompt])
    echoes, further = list[int](), list[int]()
    for row, (answer, prompt) in zip(rows, prompts.items(), strict=True):
        own, text = words[prompt], words[answer]
        if PROMPT <= len(own) < len(text) and text[: len(own)] == own:
            echoes.append(row)
        for at in range(1, len(text) - PROMPT + 1):
            others = starting.get(text[at : at + PROMPT], ())
            if any(other != own and text[at : at + len(other)] == other for other in others):
                further.append(row)
                break
    long = sum(len(words[prompt]) >= PROMPT for prompt in prompts.values())
    for found, of, least, surely, name in (
        (further, len(prompts), NOTE, ALARM, "further"),
        (echoes, long, ECHOED, ECHOED_ALARM, "echoed"),
    ):
        if not found or share_within(len(found), of)[0] < least:
            continue
        share = f"{percent(len(found) / of)} of {of:,} distinct ones"
        if name == "further":
            lead = f"end training answers before the next row: in {share} the prompt of another row follows"
            then = "The model learns to ask the next question itself. Were rows joined when they were exported?"
        else:
            lead = f"leave prompts out of training answers: {share} begin with their own prompt"
            then = "The model learns to repeat what it is asked. Were whole texts exported, with the prompt in them?"
        alarm = share_within(len(found), of)[0] >= surely
        finding = _finding(data, lead, f"{capitalized(lead)}. {then}", alarm, found, {name: len(found) / of})
        yield finding if alarm else finding.model_copy(update={"explains": ("quality",)})


def _cut(data: AuditedData, answers: Sequence[str], rows: Sequence[int]) -> Iterator[Finding]:
    """Find answers that stop in mid-sentence at one length, while shorter ones are finished."""
    open_ends = np.array([_is_unfinished(answer) for answer in answers])
    if share_within(int(open_ends.sum()), len(answers))[0] < CUT:
        return
    for unit, measure in (("characters", len), ("words", lambda answer: len(answer.split()))):
        lengths = np.array([measure(answer) for answer in answers], dtype=float)
        found = np.flatnonzero(open_ends)
        if (end := _find_limit(lengths, open_ends, unit)) is not None:
            found = np.flatnonzero((lengths >= end - (unit == "characters")) & (lengths <= end))
            if np.median([len(TOKEN.findall(answers[i])) for i in found]) < FEWEST_WORDS:  # codes of one length
                continue
        else:
            low, high = np.quantile(lengths[open_ends], (0.1, 0.9)).tolist()
            words = np.median([len(answers[i].split()) for i in found])
            if words < FEWEST_WORDS or high > NARROW * low:
                continue
            alike = open_ends.mean() > 1 - CUT and high <= ONE_LENGTH * low
            if not (_is_of_the_longer(open_ends, lengths) or alike):
                continue
        share, middle = len(found) / len(answers), float(np.median(lengths[found]))
        about = "about " if end is None else ""
        lead = f"export the answers of training again: {percent(share)} of {len(answers):,} distinct ones stop in "
        lead += f"mid-sentence, at {about}{number(middle, 0)} {unit}"
        text = f"{capitalized(lead)}, and shorter ones do not. Was a length limit set where they were made? A model "
        text += "learns to stop there."
        yield _finding(data, lead, text, True, [rows[i] for i in found], {"cut": share, "length": middle, "unit": unit})
        return


def _cut_alike(data: AuditedData, what: str, texts: Sequence[str], rows: Sequence[int]) -> Iterator[Finding]:
    """Find texts of another part that stop in mid-sentence at one length, which hardly any is longer than."""
    open_ends = np.array([_is_unfinished(text) for text in texts])
    lengths = np.array([len(text) for text in texts], dtype=float)
    end = _find_limit(lengths, open_ends, "characters") if open_ends.any() else None
    if end is None or (lengths > end).mean() > CUT:
        return
    found = np.flatnonzero((lengths >= end - 1) & (lengths <= end))
    share = len(found) / len(texts)
    lead = f"export the {what} of training again: {percent(share)} of {len(texts):,} distinct ones stop in "
    lead += f"mid-sentence, at {number(end, 0)} characters"
    text = f"{capitalized(lead)}, and hardly any is longer. Was a length limit set where they were made? What was cut "
    text += "off may decide."
    figures = {"cut": share, "length": end, "unit": "characters", "what": what}
    yield _finding(data, lead, text, PARTS[what], [rows[i] for i in found], figures)


def _find_limit(lengths: np.ndarray, open_ends: np.ndarray, unit: str) -> float | None:
    """Return the length at which far more answers stop than around it, most in mid-sentence; None if there is none.

    White space that was removed behind a cut makes texts shorter by a character.
    """
    width, least = LIMITS[unit]
    values, counts = np.unique(lengths[open_ends], return_counts=True)
    by_length = dict(zip(values.tolist(), counts.tolist(), strict=True))

    def stopping(end: float) -> int:
        return sum(by_length.get(end - i, 0) for i in range(width))

    end = max(by_length, key=lambda end: (stopping(end), end))
    there = int(((lengths > end - width) & (lengths <= end)).sum())
    around = max(stopping(end + side * width * i) for side in (-1, 1) for i in (1, 2))
    if end < least or stopping(end) < SPIKE * max(1, around) or stopping(end) < IN_SENTENCE * there:
        return None
    of_one_form = there >= ALL * len(lengths) and end < 2 * least
    return None if of_one_form or share_within(stopping(end), len(lengths))[0] < CUT else end


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
