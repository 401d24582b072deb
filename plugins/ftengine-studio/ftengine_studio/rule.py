"""The rule about judgements of a run's answers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ftengine.api import Finding, Rule
from ftengine.evaluation import read_predictions
from ftengine.text import counted, listed, percent, probability
from ftengine_studio.judgements import FILE

if TYPE_CHECKING:
    from ftengine import RunRecords
    from ftengine_studio.judge_replies import PositionBias
    from ftengine_studio.powered import PoweredRate
    from ftengine_studio.statistics import Length, WinRate
    from ftengine_studio.summary import Judged, ModelJudged, Slices, Summary

KIND = "judges"
OFTEN = 0.1
"""Share of flipped pairs from which a model's judgements are called biased by position."""


class Preferences(Rule):
    """Says which answers people, and models as judges, prefer (`judgements.jsonl` in the run's folder)."""

    name = "preferences"
    order = 120
    reads_later_files = True

    def view_command(self, run: RunRecords) -> str:
        answered = run.examples is not None and run.examples.answers
        return f"ftengine studio {shlex.quote(str(run.path))}" if answered else ""

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        if not (run.path / FILE).is_file():
            return
        from ftengine_studio.summary import summaries  # which imports scipy, and most runs have no judgements

        for summary in summaries(run.path, slices_of(run.path, run.evaluation.split)):
            if summary.people is not None:
                yield _of_people(summary, summary.people)
            for name, model in summary.models.items():
                yield _of_model(summary, name, model)
                if model.powered is not None:
                    yield _of_both(summary, name, model.powered)
            if summary.stale:
                yield _finding("note", _stale(summary), {})


def slices_of(run: Path, split: str | None) -> Slices:
    """Return the columns that define a run's slices, with the value of each held-out row."""
    table = read_predictions(run, split, "tuned") if split else {}
    return {
        name.removeprefix("slice."): {
            int(row): str(value)
            for row, value in zip(table["row"], np.asarray(column), strict=True)
            if value is not None
        }
        for name, column in table.items()
        if name.startswith("slice.")
    }


def _of_people(summary: Summary, judged: Judged) -> Finding:
    rate = judged.rate
    who = counted(rate.judges, "person", "people")
    text = f"Judged by {who} on {counted(rate.prompts, 'prompt')}: {_preferred(summary, rate)}."
    text += _decided(rate) + _agreed(judged) + _length(summary, judged.length)
    level = "note"
    if rate.is_settled and summary.side == "tuned":
        level = "good" if rate.value > 0.5 else "alarm"
    brief = f"{who} preferred {_called(summary.side)} in {percent(rate.value)} of {counted(rate.prompts, 'prompt')}"
    return _finding(level, text, {"people": rate, **_slices(judged)}, brief)


def _of_model(summary: Summary, name: str, model: ModelJudged) -> Finding:
    """A model's judgements are a note at most: how far they are people's is not known."""
    rate = model.judged.rate
    bias = "" if model.position is None else _biased(model.position)
    text = f"Judged by the model {name!r}, not by people, on {counted(rate.prompts, 'prompt')} in both orders: "
    text += f"{_preferred(summary, rate)}.{_decided(rate)}"
    # A measurement that is worth nothing is no fault of the run, so its warning leads, and the level stays.
    if model.position is not None and model.position.is_most:
        text = f"Not to be relied on.{bias} {text}"
    else:
        text += bias
    if model.garbage:
        text += f" Replies without a verdict, which count for nothing: {model.garbage:,}."
    if people := model.with_people.values():
        shared = sum(one.prompts for one in people)
        same = sum(one.same * one.prompts for one in people) / shared
        text += f" It agrees with people in {percent(same)} of {counted(shared, 'judgement')}."
    text += _length(summary, model.judged.length)
    return _finding("note", text, {f"model {name}": rate, **_slices(model.judged)})


def _biased(bias: PositionBias) -> str:
    if bias.rate is None or bias.rate < OFTEN:
        return ""
    return (
        f" The judge's verdict changed sides with the order in {percent(bias.rate)} of the pairs, which count as ties: "
        f"{bias.first:,} times for the answer that stood first, {bias.second:,} for the second "
        f"({probability(bias.p)})."
    )


def _of_both(summary: Summary, name: str, both: PoweredRate) -> Finding:
    text = (
        f"People's judgements of {counted(both.people_prompts, 'prompt')} with those of model {name!r} of "
        f"{both.model_prompts:,} further ones, corrected by people's (prediction-powered inference): "
        f"{_called(summary.side)} is preferred in {_range(both.value, both.low, both.high)}; by people alone in "
        f"{percent(both.people)}, by the model alone in {percent(both.model)}."
    )
    level = "note"
    if summary.side == "tuned" and not both.low <= 0.5 <= both.high:
        level = "good" if both.value > 0.5 else "alarm"
    return _finding(level, text, {"people and model": both})


def _stale(summary: Summary) -> str:
    return (
        f"{counted(summary.stale, 'judgement')} of {_called(summary.side)} and {_called(summary.other)} "
        f"{'is' if summary.stale == 1 else 'are'} of answers that have changed since: kept in {FILE}, and not counted. "
        "Judge the present answers."
    )


def _finding(level: str, text: str, figures: dict[str, object], brief: str = "") -> Finding:
    return Finding(kind=KIND, level=level, text=text, brief=brief, figures=figures)  # type: ignore[arg-type]


def _called(maker: str) -> str:
    return f"the {maker} model" if maker in ("base", "tuned") else f"run {maker!r}"


def _range(value: float, low: float, high: float) -> str:
    return f"{percent(value)} (95 % interval {percent(low).removesuffix(' %')} to {percent(high)})"


def _preferred(summary: Summary, rate: WinRate) -> str:
    text = f"{_called(summary.side)} is preferred over {_called(summary.other)} in "
    halves = listed([f"{name} ({percent(share)})" for name, share in _undecided(rate) if share])
    return text + _range(rate.value, rate.low, rate.high) + (f", {halves} counted as halves" if halves else "")


def _undecided(rate: WinRate) -> list[tuple[str, float]]:
    return [("ties", rate.ties), ("both bad", rate.both_bad)]


def _decided(rate: WinRate) -> str:
    if rate.is_settled:
        return f" That is beyond chance ({probability(rate.p)}, sign test)."
    chance = f" ({probability(rate.p)}, sign test)" if rate.p is not None else ""
    if rate.needed is None:
        return f" That is within chance{chance}, and too near to a half to say how many more judgements would tell."
    if rate.needed == 0:
        return f" Test and interval disagree{chance}; judge more prompts."
    return f" That is within chance{chance}; {counted(rate.needed, 'further prompt')} would settle it if it stays so."


def _agreed(judged: Judged) -> str:
    if (found := judged.agreement) is None:
        return ""
    alpha = "" if found.alpha is None else f" (Krippendorff's alpha {found.alpha:.2f})"
    return f" Of {counted(found.prompts, 'prompt')} judged by several, they agree in {percent(found.same)}{alpha}."


def _length(summary: Summary, length: Length) -> str:
    if not length.decides:
        return ""
    which = "longer" if length.longer_wins > length.shorter_wins else "shorter"
    won, total = max(length.longer_wins, length.shorter_wins), length.longer_wins + length.shorter_wins
    text = f" The {which} answer is preferred in {won:,} of {total:,} prompts ({probability(length.p)})"
    if length.controlled is None:
        return f"{text}: length and preference cannot be told apart."
    return f"{text}; at equal lengths {_called(summary.side)} would be preferred in {_range(*length.controlled)}."


def _slices(judged: Judged) -> dict[str, object]:
    return {
        f"{column} {value}": rate for column, values in judged.slices.items() for value, (rate, _) in values.items()
    }
