"""Audit `exchanged-roles`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, View
from ftengine.text import capitalized, number, percent
from ftengine_builtins.audits.contradictions import LOOKED_AT
from ftengine_builtins.audits.counting import share_within, split_name
from ftengine_builtins.audits.row_parts import ANSWERS, parts_of
from ftengine_builtins.audits.split_shift import EXPLAINED, area_error, areas, is_nonrandom_split
from ftengine_builtins.audits.word_scores import TOKEN, WordRidge, choose_rows, tf_idf
from ftengine_builtins.label_fit import ERRORS

SAMPLE, FEWEST = 350, 30
"""Turns of each side of a split that are looked at, and below which nothing is said; the time grows with the cube."""
CHARACTERS = 500
"""Characters of a turn that are read, from its beginning."""
PENALTY = 1.0
APART = 0.65
"""ROC AUC in each split by itself, from which words tell its users from its assistants."""
REJECTED = "rejected answers"
CONTRADICTED, WELL = 0.1, 0.8
"""By how much surely fewer training pairs than held-out ones are told by words, from which some look exchanged; and
the share of held-out pairs that these tell among themselves, where they tell training's no better than APART."""
ASKS = 0.3
"""Share of the assistant's turns that end in a question mark, interval's near end, from which it is the one who asks,
where users surely ask less."""
MARKS = ("?", "\uff1f", "\u061f", "\u037e")


class ExchangedRoles(Audit):
    """Finds splits in which user and assistant are exchanged: answers in one look like questions in the other.

    A ridge classifier on words and first words separates a split's users from its assistants; applied to the other
    split it must be significantly worse than guessing, in both directions. Prompts and completions, inputs and answers
    are treated alike. Looks at splits of different sources. An alarm if the side that asks questions differs too;
    otherwise a note, as tasks may differ (translation in the other direction). A note as well if the assistant asks
    most questions in all splits. Rejected and chosen answers are compared alike, pair by pair: an alarm if they are
    exchanged in one split, or if words tell far fewer pairs of training than of the other split.
    """

    name = "exchanged-roles"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        yield from _of_preferences(data)
        if not any(turns_of(view) for rows in data.splits.values() for view in islice(rows, LOOKED_AT)):
            return
        turns = {split: _draw(data, split) for split in data.splits}
        turns = {split: drawn for split, drawn in turns.items() if drawn.enough}
        if "train" not in turns:
            return
        held = [split for split in turns if split != "train" and is_nonrandom_split(data, split)]
        found = [finding for split in held if (finding := _exchanged(data, split, turns)) is not None]
        yield from found
        asking = {split: drawn.asked() for split, drawn in turns.items()}
        if not found and all(drawn.assistant_asks for drawn in turns.values()):
            user, assistant = asking["train"]
            text = "Check who is the user: the assistant asks and the user answers. In training, "
            text += f"{percent(assistant)} of its turns end in a question mark, and {percent(user)} of the user's."
            brief = f"check who is the user: {percent(assistant)} of the assistant's turns end in a question mark"
            figures, explains = {"asks": asking}, (*EXPLAINED, "data")
            yield Finding(kind="data", level="note", text=text, brief=brief, explains=explains, figures=figures)


@dataclass(frozen=True)
class Turns:
    """Distinct turns of a split by side: the inputs and the answers."""

    user: Sequence[str]
    assistant: Sequence[str]

    @property
    def enough(self) -> bool:
        return min(len(self.user), len(self.assistant)) >= FEWEST

    @property
    def sides(self) -> np.ndarray:
        """(n,) 0 for the user's turns, which come first, and 1 for the assistant's."""
        return np.repeat([0.0, 1.0], [len(self.user), len(self.assistant)])

    def words(self) -> list[str]:
        """Return each turn with its first word marked. Question marks are left out: they would decide alone."""
        return [_marked(text) for text in (*self.user, *self.assistant)]

    def asked(self) -> tuple[float, float]:
        """Return the shares of the user's and of the assistant's turns that end in a question mark."""
        return tuple(_questions(side) / len(side) for side in (self.user, self.assistant))  # type: ignore[return-value]

    @property
    def assistant_asks(self) -> bool:
        return self.asks > 0 and share_within(_questions(self.assistant), len(self.assistant))[0] >= ASKS

    @property
    def asks(self) -> int:
        """Return who asks significantly more questions: 1 the assistant, -1 the user, 0 neither."""
        user, assistant = (share_within(_questions(side), len(side)) for side in (self.user, self.assistant))
        return int(assistant[0] > user[1]) - int(user[0] > assistant[1])


def turns_of(view: View) -> tuple[list[str], list[str]] | None:
    """Return the input and the answer of a row; None if they are not texts."""
    turns = view.identity if isinstance(view.identity, list) else []
    by_role = [turn for turn in turns if isinstance(turn, list) and len(turn) == 2 and isinstance(turn[1], str)]
    if any(role == "assistant" for role, _ in by_role):
        user, assistant = ([content for role, content in by_role if role == who] for who in ("user", "assistant"))
    elif isinstance(view.target, str) and not view.classes:
        user, assistant = [text for text in view.inputs if isinstance(text, str)], [view.target]
    else:
        return None
    user, assistant = ([text.strip() for text in side if text.strip()] for side in (user, assistant))
    return (user, assistant) if user and assistant and user != assistant else None


def _draw(data: AuditedData, split: str) -> Turns:
    """Sample distinct turns of distinct rows, in the order of the file."""
    chosen = choose_rows(data.distinct[split], np.ones(len(data.splits[split]), dtype=bool), SAMPLE)
    sides = [dict[str, None](), dict[str, None]()]
    for i, view in enumerate(islice(data.splits[split], max(chosen, default=-1) + 1)):
        for side, texts in zip(sides, (turns_of(view) if i in chosen else None) or (), strict=False):
            side.update(dict.fromkeys(text[:CHARACTERS] + text[CHARACTERS:][-1:] for text in texts))
    user, assistant = ([text for text in side if text not in other] for side, other in (sides, sides[::-1]))
    return Turns(user[:SAMPLE], assistant[:SAMPLE])


def _of_preferences(data: AuditedData) -> Iterator[Finding]:
    """Find splits whose chosen answers are written as training's rejected ones are, or training pairs at random."""
    pairs = {
        split: _answers(data, split) for split in data.splits if split == "train" or is_nonrandom_split(data, split)
    }
    if not pairs["train"].enough:
        return
    for split, held in reversed(pairs.items()):  # figures are made on the last
        if split == "train" or not held.enough:
            continue
        train = pairs["train"]
        words, start = tf_idf([*train.words(), *held.words()]), len(train.sides)
        ridges = WordRidge(words[:start]), WordRidge(words[start:])
        own = [
            _right(ridge.leave_pairs_out(of.sides[:, None], PENALTY)[:, 0])
            for ridge, of in zip(ridges, (train, held), strict=True)
        ]
        across = _right(ridges[0].predict(words[start:], train.sides[:, None], PENALTY)[:, 0])
        back = _right(ridges[1].predict(words[:start], held.sides[:, None], PENALTY)[:, 0])
        shares = {"right": across, "training": own[0], "held_out": own[1]}
        figures: dict[str, Any] = {"split": split} | {key: float(right.mean()) for key, right in shares.items()}
        name = split_name(split)
        within = [share_within(int(right.sum()), len(right)) for right in (*own, across, back)]
        if min(within[0][0], within[1][0]) >= APART and max(within[2][1], within[3][1]) <= 1 - APART:
            lead = (
                f"check which answers are the chosen ones in training and in {name} rows: they are exchanged in one of "
            )
            lead += (
                f"both, as a classifier of training's answers gets {percent(across.mean())} of {len(across):,} {name} "
            )
            lead += f"pairs right, and {percent(own[0].mean())} of training's own out of sample"
            text = f"{capitalized(lead)}. Read five pairs of each, and exchange the two columns of the wrong file."
        elif (within[2][0] > max(0.5, within[0][1] + CONTRADICTED)) or (within[0][1] <= APART and within[1][0] >= WELL):
            better = max(float(across.mean()), float(own[1].mean()))
            lead = f"check which answers are the chosen ones in training: their words tell {percent(better)} of {name} "
            lead += f"pairs, and {percent(own[0].mean())} of {len(own[0]):,} training pairs out of sample"
            text = f"{capitalized(lead)}. Were chosen and rejected answers exchanged in some rows, or was it a judge "
            text += "who did not read them? Read ten pairs."
        else:
            continue
        yield Finding(kind="splits", level="alarm", text=text, brief=lead, explains=(*EXPLAINED, "data"),
                      figures={**figures, "exchanged": "answers"})  # fmt: skip
        return


def _answers(data: AuditedData, split: str) -> Turns:
    """Sample pairs of distinct rows: as many rejected answers as chosen ones, in the same order."""
    chosen = choose_rows(data.distinct[split], np.ones(len(data.splits[split]), dtype=bool), SAMPLE)
    pairs = list[tuple[str, str]]()
    for i, view in enumerate(islice(data.splits[split], max(chosen, default=-1) + 1)):
        if i in chosen and {ANSWERS, REJECTED} <= (parts := parts_of(view)).keys():
            pairs.append((parts[REJECTED].strip()[:CHARACTERS], parts[ANSWERS].strip()[:CHARACTERS]))
    return Turns([rejected for rejected, _ in pairs], [answer for _, answer in pairs])


def _right(scores: np.ndarray) -> np.ndarray:
    """Return (n,) 1 for pairs of (2 n,) scores, rejected first, whose chosen one is larger, 0.5 if both are equal."""
    rejected, chosen = np.split(scores, 2)
    return np.where(np.abs(chosen - rejected) <= 1e-9, 0.5, chosen > rejected)


def _questions(texts: Sequence[str]) -> int:
    return sum(text.endswith(MARKS) for text in texts)


def _marked(text: str) -> str:
    first = TOKEN.findall(text.lower())[:1]
    return " ".join([text, *(f"first_{word}" for word in first)])


def _exchanged(data: AuditedData, split: str, turns: dict[str, Turns]) -> Finding | None:
    """Return whether a held-out split's sides are those of training exchanged."""
    train, held = turns["train"], turns[split]
    words, start = tf_idf([*train.words(), *held.words()]), len(train.sides)
    ridges = WordRidge(words[:start]), WordRidge(words[start:])
    own = [
        _area(ridge.leave_one_out(of.sides[:, None], PENALTY)[:, 0], of.sides)
        for ridge, of in zip(ridges, (train, held), strict=True)
    ]
    answers = ridges[0].predict(words[start:], train.sides[:, None], PENALTY)[:, 0]
    across, error = _area(answers, held.sides)
    back, back_error = _area(ridges[1].predict(words[:start], held.sides[:, None], PENALTY)[:, 0], train.sides)
    if max(across + ERRORS * error, back + ERRORS * back_error) >= 0.5 or min(area for area, _ in own) < APART:
        return None
    fitted = ridges[0].leave_one_out(train.sides[:, None], PENALTY)[:, 0]
    both = _look_like_the_others((fitted, train.sides), (answers, held.sides))
    roles = any(_has_roles(view) for view in islice(data.splits[split], LOOKED_AT))
    figures = {"split": split, "auc": across, "training_auc": own[0][0]}
    return _finding(data, figures, turns, "user and assistant" if roles else "prompts and answers", both=both)


def _look_like_the_others(train: tuple[np.ndarray, np.ndarray], held: tuple[np.ndarray, np.ndarray]) -> bool:
    """Return whether both sides of held-out rows have the other side's scores, beyond the middle of training's."""
    (user, assistant), (held_user, held_assistant) = (
        (float(np.median(scores[sides == side])) for side in (0, 1)) for scores, sides in (train, held)
    )
    middle = (user + assistant) / 2
    return held_assistant < middle < held_user


def _finding(data: AuditedData, figures: dict[str, Any], turns: dict[str, Turns], who: str, *, both: bool) -> Finding:
    """Name the split in which the assistant asks; a note if none does, or if only one side differs."""
    split = figures["split"]
    names = {"train": "training", split: f"{split_name(split)} rows"}
    asks, asked = {name: turns[name].asks for name in names}, {name: turns[name].asked() for name in names}
    figures |= {"asks": asked}
    fit = f"a classifier that separates {who.replace(' and ', ' from ')} in training gets {names[split]} the wrong way "
    fit += f"round (AUC {number(figures['auc'], 2)}; training {number(figures['training_auc'], 2)})"
    if not both or set(asks.values()) != {1, -1}:
        text = f"Check whether {names[split]} are of the same task as training: {fit}. "
        text += f"If they are, {who} are exchanged in one of the two."
        brief = f"{names[split]} may be of another task than training"
        return Finding(kind="splits", level="note", text=text, brief=brief, figures=figures)
    wrong = max(asks, key=lambda name: asks[name])
    lead = f"{who} are exchanged in {'training' if wrong == 'train' else f'the {wrong} split'}"
    shares = [f"in {names[name]}, {percent(asked[name][0])} of the prompts and {percent(asked[name][1])} of the answers"
              for name in names]  # fmt: skip
    text = f"{capitalized(lead)}, or else in {names[split if wrong == 'train' else 'train']}: {fit}. "
    text += f"{capitalized(shares[0])} end in a question mark; {shares[1]}. "
    text += f"Exchange the two in {data.splits[wrong].source}."
    figures |= {"exchanged": wrong}
    return Finding(kind="splits", level="alarm", text=text, brief=lead, explains=EXPLAINED, figures=figures)


def _has_roles(view: View) -> bool:
    return isinstance(view.identity, list) and any(
        isinstance(turn, list) and turn[:1] == ["assistant"] for turn in view.identity
    )


def _area(scores: np.ndarray, sides: np.ndarray) -> tuple[float, float]:
    """Return the area under the ROC curve and its standard error."""
    area, n = float(areas(scores[:, None], sides[:, None])[0]), int(sides.sum())
    return area, area_error(area, len(sides) - n, n)
