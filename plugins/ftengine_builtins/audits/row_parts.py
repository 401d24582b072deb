"""The texts of a row by what they are (prompts, answers, anchors, …), and how many words they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ftengine.api import View
from ftengine.text import quoted
from ftengine_builtins.audits.one_answer import any_answer
from ftengine_builtins.audits.surface import Echo, Feature
from ftengine_builtins.audits.word_scores import TOKEN

ANSWERS, PROMPTS, SYSTEMS = "answers", "prompts", "system messages"
SYSTEM = frozenset({"system", "developer"})
"""Roles whose messages are instructions rather than turns."""
COLUMNS = ("anchors", "positives", "negatives")
"""What the texts of a row are that has no target, in order."""
RELATED = (
    ("anchors", "positives"), ("anchors", "negatives"), ("answers", "prompts"), ("rejected answers", "prompts"),
)  # fmt: skip
"""Parts of which one may have words of the other, or stand in it word for word."""
SHORT = 3
"""Letters of words that nearly any text has."""
COMPARED = (("answers", "rejected answers"), ("positives", "negatives"))
"""Parts of which the longer one may be the right one."""
VERBATIM = 3
"""Words of a text, at least, that can be said to stand in another word for word."""
NEARLY_ALL, HARDLY, LONGEST = 0.9, 0.02, 30
"""Share of one side's texts that begin or end alike, of the other's that do so, at most, and words that are read."""


def parts_of(view: View) -> dict[str, str]:
    """Return the texts of a row by what they are; of a conversation the last prompt and the last answer.

    Rows with a label have "texts" alone, rows without a target "anchors", "positives" and, if any, "negatives", rows
    with two answers "prompts", "answers" (the chosen ones) and "rejected answers". Blank parts are left out.
    """
    return {what: text for what, text in _parts(view) if text.strip()}


def _parts(view: View) -> Iterator[tuple[str, str]]:
    answer = last_turn(any_answer(view))
    columns = view.identity if view.target is None and isinstance(view.identity, list) else []
    if answer:
        roles = _by_role(view)
        systems = [text for role, text in roles if role in SYSTEM]
        prompts = [text.strip() for text in view.inputs if isinstance(text, str) and text not in systems]
        yield ANSWERS, Echo(answer) if prompts and _begins_with(answer, prompts[-1]) else answer
        yield PROMPTS, "\n".join(prompts)
        yield SYSTEMS, "\n".join(systems)
        if isinstance(view.target, dict) and "rejected" in view.target:
            yield "rejected answers", last_turn(view.target["rejected"])
    elif len(columns) in (2, 3) and len(view.inputs) > 1 and all(map(_is_column, columns)):
        texts = ["\n".join(column) if isinstance(column, list) else column for column in columns]
        for what, text in zip(COLUMNS, texts, strict=False):
            yield what, Echo(text) if what == "positives" and _begins_with(text, texts[0]) else text
    else:
        texts = [text.strip() for text in view.texts]
        echoed = len(texts) > 1 and _begins_with(texts[1], texts[0])
        yield "texts", Echo("\n".join(view.texts)) if echoed else "\n".join(view.texts)


def last_prompt(view: View, prompts: str) -> str:
    """Return the last input of a row, or its prompts if it has none."""
    texts = [text for text in view.inputs if isinstance(text, str)]
    return texts[-1] if texts else prompts


def _begins_with(text: str, first: str) -> bool:
    return bool(first.strip()) and text.strip().casefold().startswith(first.strip().casefold())


def last_turn(answer: Any) -> str:
    """Return a free answer, of several turns the last; "" if it is no text."""
    answer = answer[-1] if isinstance(answer, list) and answer else answer
    return answer if isinstance(answer, str) else ""


def _by_role(view: View) -> list[tuple[str, str]]:
    identity = view.identity
    identity = identity[0] if isinstance(view.target, dict) and identity and isinstance(identity[0], list) else identity
    turns = identity if isinstance(identity, list) else []
    return [
        (turn[0], turn[1])
        for turn in turns
        if isinstance(turn, list) and len(turn) == 2 and isinstance(turn[0], str) and isinstance(turn[1], str)
    ]


def number_of_turns(view: View) -> int:
    """Return how many messages a conversation has, without instructions; 0 for other rows."""
    return sum(role not in SYSTEM for role, _ in _by_role(view))


def _is_column(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))


def relations(of: str, within: str) -> tuple[Feature, ...]:
    """Return features of (text, other text): whether it stands in the other one, and the share of its words there.

    Of two texts that are compared, whether the first is the longer one.
    """
    if (of, within) in COMPARED:
        does = (f"is longer than its {within}", f"are longer than their {within}")
        return (Feature("longer", does, lambda pair: float(len(pair[0]) > len(pair[1]))),)
    name = f"share of the words of {of} that are in {'their ' if of != PROMPTS else ''}{within}"
    return (
        Feature(
            f"{of} in {within}",
            (f"stands word for word in its {within}", f"stand word for word in their {within}"),
            lambda pair: float(_is_verbatim(*pair)),
        ),
        Feature(name, None, lambda pair: shared_words(*pair), is_share=True),
    )


def shared_words(text: str, within: str) -> float:
    """Return the share of a text's distinct words, without short ones, that another text has."""
    words = {*TOKEN.findall(text.casefold())}
    words = {word for word in words if len(word) > SHORT} or words
    return len(words & {*TOKEN.findall(within.casefold())}) / max(1, len(words))


def _is_verbatim(text: str, within: str) -> bool:
    words = TOKEN.findall(text.casefold())
    return len(words) >= VERBATIM and f" {' '.join(words)} " in f" {' '.join(TOKEN.findall(within.casefold()))} "


def affixes(train: Sequence[str], held: Sequence[str]) -> Iterator[Feature]:
    """Yield the words with which nearly all texts of one side begin, or end, and hardly any of the other does.

    A single word of letters alone, such as "The", is none: grammar has many of these.
    """
    for texts, others in ((train, held), (held, train)):
        for end in (False, True):
            words = _affix(texts, end=end)
            if (
                not words
                or (len(words) == 1 and words[0].isalpha())
                or sum(_has(text, words, end=end) for text in others) > HARDLY * len(others)
            ):
                continue
            verbs = ("ends with", "end with") if end else ("begins with", "begin with")
            shown = quoted(" ".join(words))
            yield Feature("ends" if end else "begins", (f"{verbs[0]} {shown}", f"{verbs[1]} {shown}"),
                          partial(_measure_affix, words=words, end=end))  # fmt: skip


def _affix(texts: Sequence[str], *, end: bool) -> tuple[str, ...]:
    """Return the longest sequence of words that nearly all texts begin, or end, with, behind or before others."""
    found: tuple[str, ...] = ()
    split = [_words(text, end=end) for text in texts]
    for count in range(1, LONGEST + 1):
        most = Counter(tuple(words[:count]) for words in split if len(words) > count).most_common(1)
        if not most or most[0][1] < NEARLY_ALL * len(texts):
            break
        found = most[0][0]
    return found[::-1] if end else found


def _words(text: str, *, end: bool) -> list[str]:
    """Return a text's first words, or its last ones in the reverse order."""
    return text.split()[: -LONGEST - 2 : -1] if end else text.split(maxsplit=LONGEST + 1)[: LONGEST + 1]


def _measure_affix(text: str, words: Sequence[str], end: bool) -> float:
    return float(_has(text, words, end=end))


def _has(text: str, affix: Sequence[str], *, end: bool) -> bool:
    words = _words(text, end=end)[: len(affix)]
    return [*affix] == (words[::-1] if end else words)
