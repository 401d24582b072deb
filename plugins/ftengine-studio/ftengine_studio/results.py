"""Figures of a contest's judgements for the page, by people and by each judging model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ftengine.errors import InputError
from ftengine_studio.judgements import Judgement
from ftengine_studio.judging import Contest

if TYPE_CHECKING:
    from ftengine_studio.summary import Judged


def result_of(contest: Contest) -> dict[str, Any]:
    """Return "side" and "other" (the makers), the number of "pairs", and figures of "people" and of each of "models".

    Figures are win rate with interval, sign test and need of more, agreement, length, and slices; None without any. A
    model's have its "position" bias, agreement "with_people", and the rate of both together ("powered") as well.
    "stale" judgements are of answers that have changed since, and count for nothing.
    """
    from ftengine_studio.summary import summaries  # scipy takes seconds to load

    judgements, makers = contest.judgements(), set(contest.makers)
    of_these = {frozenset(makers): contest.hashes}
    found = next(
        (one for one in summaries(contest.run.path, _slices(contest), of_these) if {one.side, one.other} == makers),
        None,
    )
    people = [one for one in judgements if one.kind == "person"]
    side, other = (found.side, found.other) if found else contest.makers
    models = {}
    for name, model in found.models.items() if found else ():
        own = [one for one in judgements if one.kind == "model" and one.judge == name]
        position = None if model.position is None else asdict(model.position) | {"most": model.position.is_most}
        further = {"garbage": model.garbage, "position": position, "powered": _plain(model.powered)}
        agreed = {person: {"same": one.same, "prompts": one.prompts} for person, one in model.with_people.items()}
        models[name] = _figures(model.judged, own) | further | {"with_people": agreed}
    return {
        "title": contest.title,
        "side": side,
        "other": other,
        "pairs": len(contest.pairs),
        "stale": found.stale if found else 0,
        "people": _figures(found.people, people) if found and found.people else None,
        "models": models,
        "notes": _notes(contest, people),
        "in_report": contest.other is None and contest.run.finished,
    }


def _slices(contest: Contest) -> dict[str, dict[int, str]]:
    """Return by column the value of each prompt."""
    columns = sorted({column for pair in contest.pairs for column in pair.slices})
    return {c: {pair.row: pair.slices[c] for pair in contest.pairs if c in pair.slices} for c in columns}


def _plain(value: Any) -> Any:
    return None if value is None else asdict(value)


def _figures(judged: Judged, judgements: Sequence[Judgement]) -> dict[str, Any]:
    rate, agreed = judged.rate, judged.agreement
    kappas = {} if agreed is None else {" and ".join(pair): value for pair, value in agreed.kappas.items()}
    return {
        "rate": asdict(rate) | {"settled": rate.is_settled},
        "skipped": sum(one.verdict == "skip" for one in judgements),
        "length": asdict(judged.length),
        "agreement": None if agreed is None else asdict(agreed) | {"kappas": kappas},
        "slices": [
            {"column": column, "value": value, "rate": asdict(rate_of), "p": p}
            for column, values in judged.slices.items()
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
        raise InputError("there is a verdict only for the base and tuned model of one finished run. Choose these.")
    from ftengine import load_run

    return {"headline": load_run(contest.run.path, trust_code=True).conclude().headline}
