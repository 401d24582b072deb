"""Rules about on-policy training, by the drawn answers of a run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import against, capitalized, counted, number, percent

REWARD = "mean_reward"
LAST = 10
"""Steps at the beginning and at the end of a run that are compared, a tenth of the run at least."""
FLAT, FAILING, CUT = 0.8, 0.05, 0.5
"""Shares of prompts without spread, of answers without reward, and of answers that are cut off, from which they are
reported."""
APART = 0.2
"""Mean distance between log-probabilities of a token by what drew it and by what trains, from which they are two
models; SmolLM2 comes to 0.04 in bfloat16 and 0.00001 in float32."""
CUT_FROM, ONE_SIDED = 0.02, 0.9
"""Mean excess of the sampler's log-probabilities over the trainer's, and its part of their distance, from which the
sampler leaves out unlikely tokens: it then gives all others more. Rounding goes both ways."""
LATER, LEAST_LATER = 3.0, 0.001
"""How much farther apart they are than at the first step, before any update, once what draws has other weights."""
REPEATED = 0.2
"""Share of answers that equal another to their prompt, beyond what their probabilities make of it, that is reported."""
GONE = 0.1
"""Part of the first steps' entropy below which a model draws nearly the same answer each time."""


def drawn_steps(run: RunRecords) -> list[dict[str, Any]]:
    """Return the lines of steps that trained on drawn answers; [] for other runs."""
    return [line for line in run.lines if "zero_spread" in line]


class DrawnRewards(Rule):
    """Finds reward functions that are constant or fail, and rewards that rise without better answers."""

    name = "drawn-rewards"
    order = 2

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        if not (lines := drawn_steps(run)):
            return
        failed = sum(line["failed"] for line in lines) / sum(line["answers"] for line in lines)
        if failed >= FAILING:
            brief = f"correct the reward: it failed at {percent(failed)} of the answers (draws.jsonl has the errors)"
            yield _finding("note", brief, {"failed": failed})
        if (again := mean_of(lines, "repeated")) - (chance := mean_of(lines, "repeated_by_chance")) >= REPEATED:
            brief = "find out why answers repeat: another answer to the prompt equals "
            brief += f"{percent(again)} of them, and by their probabilities that would be {percent(chance)}, so that "
            brief += "seeds repeat in what draws them"
            figures = {"repeated": again, "by_chance": chance}
            yield _finding("alarm", brief, figures, explains=("quality", "learning", "worse"))
            return
        flat = mean_of(lines, "zero_spread")
        if flat == 1:
            brief = "check the reward, or take other prompts: all answers to each prompt got the same reward in all "
            brief += f"{counted(len(lines), 'step')}, so nothing was learnt"
            yield _finding("alarm", brief, {"zero_spread": flat}, explains=("quality", "learning", "worse"))
            return
        if flat >= FLAT:
            brief = f"take other prompts or draw more answers: {percent(flat)} of the prompts taught nothing, as all "
            brief += "answers to them got the same reward"
            yield _finding("note", brief, {"zero_spread": flat}, explains=("quality",))
        yield from _gained_otherwise(run)
        yield from drawn_otherwise(lines)
        first, last = lines[: _few(lines)], lines[-_few(lines) :]
        entropies = mean_of(first, "entropy"), mean_of(last, "entropy")
        if len(lines) >= 2 * LAST and entropies[1] < GONE * entropies[0]:
            brief = f"its answers hardly vary any more: the entropy of a token fell from {number(entropies[0], 2)} to "
            brief += f"{number(entropies[1], 2)}, so that little was left to learn from (task.beta, or a lower rate)"
            yield _finding("note", brief, {"first": entropies[0], "last": entropies[1]})
        if (cut := mean_of(last, "cut_off")) >= CUT:
            brief = f"raise task.max_new_tokens: {percent(cut)} of the answers were cut off in the last steps"
            yield _finding("note", brief, {"cut_off": cut})


def drawn_otherwise(lines: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield that what drew the answers is not what trains, and how."""
    gap, dropout, excess = (mean_of(lines, name) for name in ("sampler_gap", "dropout", "sampler_excess"))
    gaps = [value for line in lines if (value := line.get("sampler_gap")) is not None]
    explains = "quality", "learning"
    if gap >= APART and dropout > 0:
        brief = "switch dropout off (regularizer `dropout` with p: 0, or the strategy's own): at a rate of "
        brief += f"{number(dropout)} the loss gave tokens log-probabilities that differ by {number(gap, 2)} from "
        brief += "those with which they were drawn"
        yield _finding("note", brief, {"dropout": dropout, "sampler_gap": gap}, explains=explains)
    elif excess >= max(CUT_FROM, ONE_SIDED * gap):
        brief = "draw from the model's whole distribution: what drew the answers gave their tokens more probability "
        brief += f"than what trains, by {number(excess, 2)} in the logarithm and hardly ever less, as where top-p, "
        brief += "top-k or a lower temperature leaves out or lowers the others, which the loss does not know"
        yield _finding("alarm", brief, {"sampler_excess": excess}, explains=explains)
    elif gap >= APART:
        brief = "find out what drew the answers: it gave their tokens log-probabilities that differ by "
        brief += f"{number(gap, 2)} from those that were trained, so the model learnt from another model's answers"
        yield _finding("alarm", brief, {"sampler_gap": gap}, explains=explains)
    elif len(gaps) > 1 and (later := fmean(gaps[1:])) >= LATER * gaps[0] + LEAST_LATER:
        brief = "find out which weights drew the answers: from the first update on, log-probabilities of their tokens "
        brief += f"differ by {number(later, 2)} from those that were trained (before it by {number(gaps[0], 2)}), as "
        brief += "where updates do not reach what draws, or later than they should"
        yield _finding("alarm", brief, {"later_gap": later, "first_gap": gaps[0]}, explains=explains)


def _gained_otherwise(run: RunRecords) -> Iterator[Finding]:
    """Yield that the reward rose and another measure of quality did not."""
    evaluation = run.evaluation
    reward = evaluation.difference.get(REWARD)
    if reward is None or not reward.better:
        return
    of_reward = {name for name, metric in evaluation.metrics.items() if metric.evaluator == "mean-reward"}
    others = [
        name
        for name, change in evaluation.difference.items()
        if name not in of_reward and evaluation.metrics[name].kind == "quality" and not change.better
    ]
    worse = [name for name in others if evaluation.difference[name].better is False]
    for name in (worse or others)[:1]:
        values = against(evaluation.tuned[name], evaluation.base[name])
        gained = against(evaluation.tuned[REWARD], evaluation.base[REWARD])
        did = "got worse" if worse else "is not shown to have become better"
        brief = (
            f"read the answers in draws.jsonl: the reward rose ({gained}) and {evaluation.metrics[name].label} {did} "
        )
        brief += f"({values}), so the reward may pay for something that is not meant"
        yield _finding("alarm" if worse else "note", brief, {"metric": name}, explains=("worse",))


def _few(lines: Sequence[Any]) -> int:
    return max(LAST, len(lines) // 10)


def mean_of(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    """Return the mean of a figure over the steps that have it; nan if none has."""
    values = [value for line in lines if (value := line.get(name)) is not None]
    return fmean(values) if values else math.nan


def _finding(level: Any, brief: str, figures: dict[str, Any], explains: tuple[str, ...] = ()) -> Finding:
    text = f"{capitalized(brief)}."
    return Finding(kind="learning", level=level, text=text, brief=brief, explains=explains, figures=figures)
