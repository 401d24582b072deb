"""Finding where a served model's greedy answer departs from the tuned model's, and how unlikely its next token is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ftengine.api import LoadedModel
from ftengine.evaluation.questions import Question, complete_text
from ftengine.generation import next_log_probabilities

CANDIDATES = 2000
"""Of the likeliest tokens, among which the one is looked for that a text goes on with."""
PARTIAL = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer shows of a character of which it has a part."""


def divergences(
    loaded: LoadedModel, asked_questions: Sequence[Question], texts: Sequence[str], stop: Sequence[int]
) -> list[float]:
    """Return, per question, how much less likely the tuned model finds a text's token where it departs from its answer.

    Rounding can make greedy answers depart where two tokens are almost equally likely. Their log-probabilities then
    differ by at most twice the error of one.

    Args:
        loaded: the tuned model.
        texts: answers of the served model.
        stop: tokens that end an answer.

    Returns:
        Differences of log-probabilities: 0 if the text begins with the tuned model's answer, nan if the text is a
        proper beginning of that answer and so may have been cut.
    """
    return [_divergence(loaded, question, text, stop) for question, text in zip(asked_questions, texts, strict=True)]


def _divergence(loaded: LoadedModel, own: Question, text: str, stop: Sequence[int]) -> float:
    if complete_text(text) == complete_text(own.text):
        return 0.0

    def read(tokens: Sequence[int]) -> str:
        return str(loaded.processor.decode(tokens, skip_special_tokens=True)).lstrip()

    theirs = text.lstrip()
    body = list(own.answer[: len(own.answer) - own.ended])
    same = next(k for k in range(len(body), -1, -1) if theirs.startswith(read(body[:k])))
    begun = body[:same]
    if same < len(body) and read(begun).rstrip() == theirs.rstrip():
        return math.nan
    if same == len(own.answer) or _may_follow(read, begun, own.answer[same], theirs):
        return 0.0  # the tuned answer was cut here, or it begins a character here of which nothing more is known
    scores = next_log_probabilities(loaded, [*own.prompt.ids, *begun])
    likeliest = scores.topk(min(CANDIDATES, len(scores)))
    others = {own.answer[same], *stop}
    places = (
        i
        for i, token in enumerate(likeliest.indices.tolist())
        if token not in others and _may_follow(read, begun, token, theirs)
    )
    place = next(places, len(likeliest.values) - 1)
    return max(0.0, float(scores[own.answer[same]] - likeliest.values[place]))


def _may_follow(read: Callable[[Sequence[int]], str], begun: list[int], token: int, text: str) -> bool:
    """Return whether a text that begins with some tokens may continue with another token.

    A token without visible text (a special token, leading white space) is possible anywhere; a part of a character is
    possible where a character beyond ASCII follows.
    """
    before, longer = read(begun), read([*begun, token])
    if text.startswith(longer):
        return True
    following = text[len(before) : len(before) + 1]
    return longer.endswith(PARTIAL) and text.startswith(longer[:-1]) and not following.isascii()
