"""Figures of the judgements in a run's folder: of people, of each model, and of both (prediction-powered)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ftengine_studio.judge_replies import ORDERS, JudgeReply, PositionBias, position_bias, read_replies
from ftengine_studio.judgements import Judgement, latest, read
from ftengine_studio.powered import PoweredRate, powered_rate
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
    """

    side: str
    other: str
    people: Judged | None
    models: Mapping[str, ModelJudged] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return _with_text_keys(asdict(self))


def summaries(run: str | Path, slices: Slices | None = None) -> list[Summary]:
    """Return the figures of a run's judgements, base and tuned model first, then those of pairs of runs.

    Raises:
        RunError: a file is damaged.
    """
    by_makers = dict[tuple[str, str], list[Judgement]]()
    for judgement in latest(read(run)):
        if judgement.verdict != "skip":
            by_makers.setdefault(_makers(judgement, Path(run).resolve().name), []).append(judgement)
    order = sorted(by_makers, key=lambda makers: (makers != ("tuned", "base"), makers))
    replies = list(read_replies(run).values()) if order else []
    return [_summary(*makers, by_makers[makers], replies, slices or {}) for makers in order]


def _makers(judgement: Judgement, own: str) -> tuple[str, str]:
    """Return the side whose rate is given, and the other: tuned before base, the run before others."""
    first, second = sorted((judgement.left, judgement.right), key=lambda maker: (maker not in ("tuned", own), maker))
    return first, second


def _summary(
    side: str, other: str, judgements: Sequence[Judgement], replies: Sequence[JudgeReply], slices: Slices
) -> Summary:
    people = [one for one in judgements if one.kind == "person"]
    names = sorted({one.judge for one in judgements if one.kind == "model"})
    models = {}
    for name in names:
        own = [one for one in judgements if one.kind == "model" and one.judge == name]
        of_base = [one for one in replies if one.judge == name and (side, other) == ("tuned", "base")]
        models[name] = _of_model(own, people, of_base, side, slices)
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
