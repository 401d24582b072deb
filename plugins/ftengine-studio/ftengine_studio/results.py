"""What the judgements of a contest come to, for the page: of people, and of each judging model apart from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ftengine.errors import InputError
from ftengine_studio.judgements import Judgement
from ftengine_studio.judging import Contest


def result_of(contest: Contest) -> dict[str, Any]:
    """Return "side" and "other" (the makers), the number of "pairs", and figures of "people" and of each of "models".

    Figures are win rate with interval, sign test and need of more, agreement, length, and slices; None without any.
    """
    judgements = contest.judgements()
    side, other = contest.makers
    people = [one for one in judgements if one.kind == "person"]
    models = sorted({one.judge for one in judgements if one.kind == "model"})
    return {
        "title": contest.title,
        "side": side,
        "other": other,
        "pairs": len(contest.pairs),
        "people": _figures(contest, people),
        "models": {name: _figures(contest, [one for one in judgements if one.judge == name]) for name in models},
        "notes": _notes(contest, people),
        "in_report": contest.other is None and contest.run.finished,
    }


def _figures(contest: Contest, judgements: Sequence[Judgement]) -> dict[str, Any] | None:
    from ftengine_studio.statistics import agreement, by_slice, length, win_rate  # scipy takes seconds to load

    side = contest.makers[0]
    rate, agreed = win_rate(judgements, side), agreement(judgements, side)
    if rate is None:
        return None
    columns = sorted({column for pair in contest.pairs for column in pair.slices})
    slices = {c: {pair.row: pair.slices[c] for pair in contest.pairs if c in pair.slices} for c in columns}
    kappas = {} if agreed is None else {" and ".join(pair): value for pair, value in agreed.kappas.items()}
    return {
        "rate": asdict(rate) | {"settled": rate.is_settled},
        "skipped": sum(one.verdict == "skip" for one in judgements),
        "length": asdict(length(judgements, side)),
        "agreement": None if agreed is None else asdict(agreed) | {"kappas": kappas},
        "slices": [
            {"column": column, "value": value, "rate": asdict(rate_of), "p": p}
            for column, values in by_slice(judgements, side, slices).items()
            for value, (rate_of, p) in values.items()
        ],
        "judges": {
            name: sum(one.judge == name for one in judgements) for name in sorted({j.judge for j in judgements})
        },
    }


def _notes(contest: Contest, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Return what people wrote, with the prompt and whom they preferred."""
    prompts = {pair.prompt_hash: pair.prompt for pair in contest.pairs}
    return [
        {
            "judge": one.judge,
            "note": one.note,
            "verdict": one.preferred or one.verdict,
            "prompt": prompts.get(one.prompt_hash, ""),
        }
        for one in judgements
        if one.note
    ]


def conclude(contest: Contest) -> dict[str, str]:
    """Judge the run again with the judgements, and rewrite its verdict and report; return the headline.

    Raises:
        InputError: two runs have no verdict in common, or the run is not finished.
    """
    if contest.other is not None or not contest.run.finished:
        raise InputError("a verdict is of one finished run: choose its base and tuned model.")
    from ftengine import load_run

    return {"headline": load_run(contest.run.path, trust_code=True).conclude().headline}
