"""Figures of the judgements in a run's folder: of people, of each model, and of both (prediction-powered)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ftengine_studio.answers import pairs_of
from ftengine_studio.judge_replies import ALONE, ORDERS, JudgeReply, PositionBias, position_bias, read_replies
from ftengine_studio.judgements import Judgement, current, read
from ftengine_studio.powered import PoweredRate, powered_rate
from ftengine_studio.runs import StudioRun, maker_name
from ftengine_studio.statistics import (
    Agreement,
    Length,
    WinRate,
    agreement,
    by_slice,
    length,
    scores_by_prompt,
    win_rate,
)

Slices = Mapping[str, Mapping[int, str]]
"""By column, the value of each prompt."""


@dataclass(frozen=True)
class Judged:
    """Figures of one judge's or of people's judgements on one pair of makers (see `statistics`).

    Args:
        slices: by column and value, the rate with its p adjusted for all slices.
    """

    rate: WinRate
    length: Length
    agreement: Agreement | None
    slices: Mapping[str, Mapping[str, tuple[WinRate, float | None]]]


@dataclass(frozen=True)
class ModelJudged:
    """Figures of a model's judgements.

    Args:
        position: bias by the order of the answers; None without stored replies.
        garbage: replies in which no verdict was read.
        with_people: agreement of the model with each person, on the prompts of both.
        powered: people's judgements and the model's together; None where people judged too few.
    """

    judged: Judged
    position: PositionBias | None
    garbage: int
    with_people: Mapping[str, Agreement]
    powered: PoweredRate | None


@dataclass(frozen=True)
class Summary:
    """All judgements of one pair of makers.

    Args:
        side, other: the makers; rates are of `side`.
        people: None where nobody judged.
        models: by the judge's name.
        stale: number of judgements whose answers have changed since; they count for nothing.
    """

    side: str
    other: str
    people: Judged | None
    models: Mapping[str, ModelJudged] = field(default_factory=dict)
    stale: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return _with_text_keys(asdict(self))


def summaries(
    run: str | Path, slices: Slices | None = None, answers: Mapping[frozenset[str], Mapping[str, str]] | None = None
) -> list[Summary]:
    """Return the figures of a run's judgements, base and tuned model first, then those of pairs of runs.

    Args:
        answers: by two makers, `answers_hash` of their present answers by prompt; those of base and tuned model are
            read from the run. Judgements of other answers are only counted (`current`).

    Raises:
        RunError: a file is damaged.
    """
    by_makers = dict[tuple[str, str], list[Judgement]]()
    for judgement in read(run):
        by_makers.setdefault(_makers(judgement, maker_name(Path(run), Path(run))), []).append(judgement)
    if not by_makers:
        return []
    own = {pair.prompt_hash: pair.answers_hash for pair in pairs_of(StudioRun(Path(run), ""))}
    hashes = {frozenset(("base", "tuned")): own, **(answers or {})}
    replies = list(read_replies(run).values())
    found = []
    for makers in sorted(by_makers, key=lambda makers: (makers != ("tuned", "base"), makers)):
        of_these = hashes.get(frozenset(makers), {})
        judgements, stale = current(by_makers[makers], of_these)
        judged = [one for one in judgements if one.verdict != "skip"]
        present = [one for one in replies if _is_current(one, of_these)] if makers == ("tuned", "base") else []
        if judged or stale:
            found.append(replace(_summary(*makers, judged, present, slices or {}), stale=stale))
    return found


def _is_current(reply: JudgeReply, hashes: Mapping[str, str]) -> bool:
    """Say whether a reply compares the present answers, as far as that is known."""
    if reply.order == ALONE:
        return False
    return not hashes or reply.answers_hash in (None, hashes.get(reply.prompt_hash))


def _makers(judgement: Judgement, own: str) -> tuple[str, str]:
    """Return the side whose rate is given, and the other: tuned before base, the run before others."""
    first, second = sorted((judgement.left, judgement.right), key=lambda maker: (maker not in ("tuned", own), maker))
    return first, second


def _summary(
    side: str, other: str, judgements: Sequence[Judgement], replies: Sequence[JudgeReply], slices: Slices
) -> Summary:
    people = [one for one in judgements if one.kind == "person"]
    models = {}
    for name in sorted({one.judge for one in judgements if one.kind == "model"}):
        own = [one for one in judgements if one.kind == "model" and one.judge == name]
        models[name] = _of_model(own, people, [one for one in replies if one.judge == name], side, slices)
    return Summary(side, other, _judged(people, side, slices), {k: model for k, model in models.items() if model})


def _judged(judgements: Sequence[Judgement], side: str, slices: Slices) -> Judged | None:
    rate = win_rate(judgements, side)
    if rate is None:
        return None
    return Judged(rate, length(judgements, side), agreement(judgements, side), by_slice(judgements, side, slices))


def _of_model(
    own: Sequence[Judgement], people: Sequence[Judgement], replies: Sequence[JudgeReply], side: str, slices: Slices
) -> ModelJudged | None:
    judged = _judged(own, side, slices)
    if judged is None:
        return None
    persons = sorted({one.judge for one in people})
    agreed = {name: agreement([*own, *(one for one in people if one.judge == name)], side) for name in persons}
    pairs = in_both_orders(replies)
    return ModelJudged(
        judged,
        position_bias(pairs) if pairs else None,
        sum(reply.verdict is None for both_orders in pairs for reply in both_orders),
        {name: found for name, found in agreed.items() if found is not None},
        powered_rate(scores_by_prompt(people, side), scores_by_prompt(own, side)),
    )


def in_both_orders(replies: Sequence[JudgeReply]) -> list[tuple[JudgeReply, JudgeReply]]:
    """Return the last replies to each prompt in both orders; prompts that lack one are left out."""
    by_prompt = dict[str, dict[str, JudgeReply]]()
    for reply in replies:
        by_prompt.setdefault(reply.prompt_hash, {})[reply.order] = reply
    return [(both[ORDERS[0]], both[ORDERS[1]]) for both in by_prompt.values() if len(both) == len(ORDERS)]


def _with_text_keys(value: Any) -> Any:
    """Return JSON values with keys of texts: pairs of judges become "A and B"."""
    if isinstance(value, Mapping):
        return {" and ".join(k) if isinstance(k, tuple) else k: _with_text_keys(inner) for k, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, (list, tuple)) else value
