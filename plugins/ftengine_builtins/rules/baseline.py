"""Rule `constant-answer`: the tuned model against what is reached without looking at the inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftengine.api import Baseline, Estimate, Finding, Rule
from ftengine.api.figures import FEW, against, counted, ends, known, plain, quoted, with_interval
from ftengine_builtins.rules.chance import CHANCE, Apart

if TYPE_CHECKING:
    from ftengine import RunRecords

MOSTLY, SELDOM = 0.95, 0.5
"""Share of the examples to which one answer is given that counts as constant, where it is the truth of at most half."""


@dataclass(frozen=True)
class Bar:
    """What the tuned model is measured by.

    Args:
        run: a run.
        metric: the metric that the verdict goes by, where its evaluator says what is reached without looking, else the
            first for which one does.
        baseline: what its evaluator says.
    """

    run: RunRecords
    metric: str
    baseline: Baseline

    @property
    def tuned(self) -> Estimate:
        return self.run.evaluation.tuned[self.metric]

    @property
    def answer(self) -> str:
        """The best constant answer, in words."""
        return f"always answering {_said(self.baseline.answer)}"

    @property
    def gain(self) -> Apart | None:
        """How much better the tuned model is; None without an interval, or where all examples have one truth."""
        return None if self.baseline.share == 1 else self._gain(self.metric)

    def beaten(self, *, pooled: bool) -> list[str]:
        """Return the other metrics that are better than without looking; `pooled` as `Metric` has it."""
        metrics = self.run.evaluation.metrics
        others = [name for name in self.baseline.figures if name != self.metric and name in metrics]
        gains = {name: self._gain(name) for name in others if metrics[name].pooled == pooled}
        return [name for name, gain in gains.items() if gain is not None and gain.low > 0]

    def pair(self, metric: str) -> str:
        """Return a metric's name, the tuned model's value with its interval, and what is reached without looking."""
        label = self.run.evaluation.metrics[metric].label
        return f"{label} {with_interval(self.run.evaluation.tuned[metric])} against {plain(self._level(metric))}"

    def difference(self, gain: Apart) -> str:
        """Return the metric's name, both values, and the difference with its interval."""
        metric = self.run.evaluation.metrics[self.metric]
        difference = gain if metric.higher_is_better else gain.turned()
        pair = against(self.tuned, self._level(self.metric))
        return f"{metric.label} {pair}, a difference of {with_interval(difference, sign=True)}"

    def _level(self, metric: str) -> Estimate:
        return Estimate(self.baseline.figures[metric], None, None, 0)

    def _gain(self, metric: str) -> Apart | None:
        """Return the gain by pairs, where it was measured so; else the level is known without examples."""
        figure, paired = self.run.evaluation.tuned.get(metric), self.baseline.gains.get(metric)
        level = 0.0 if paired is not None else self.baseline.figures[metric]
        found = figure if paired is None else paired
        interval = ends(found)
        if not known(found) or interval is None:
            return None
        above = Apart(found.value - level, interval[0] - level, interval[1] - level)
        return above if self.run.evaluation.metrics[metric].higher_is_better else above.turned()


def bar_of(run: RunRecords) -> Bar | None:
    """Return what the tuned model is measured by; None where no evaluator says what is reached without looking."""
    tuned, found = run.evaluation.tuned, {}
    for details in run.evaluation.details.tuned.values():
        if (baseline := Baseline.of(details)) is not None:
            found |= {metric: baseline for metric in baseline.figures if metric in tuned and metric not in found}
    metric = run.headline_metric if run.headline_metric in found else next(iter(found), None)
    return None if metric is None else Bar(run, metric, found[metric])


def no_better_than_a_constant(run: RunRecords) -> bool:
    """Say whether the tuned model is not shown to be better than the best constant answer.

    Where all held-out examples have one truth, none can be better, and nothing is said.
    """
    bar = bar_of(run)
    return bar is not None and bar.gain is not None and not bar.gain.low > 0


class ConstantAnswer(Rule):
    """Finds a model that always answers the same, or that is no better than doing so, or than chance."""

    name = "constant-answer"
    order = 0

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        bar = bar_of(run)
        if bar is None:
            yield from _written_alike(run)
            return
        baseline, split = bar.baseline, run.evaluation.split
        told = baseline.model_dump(mode="json", exclude={"classes", "gains"})
        figures = {"metric": bar.metric, "tuned": bar.tuned, "gain": bar.gain, **told}
        if baseline.share == 1:
            text = f"The {split} split has one answer only ({_said(baseline.answer)}): figures say nothing of others."
            yield Finding(kind="baseline", level="note", text=text, figures=figures)
        elif _is_constant(bar):
            yield Finding(kind="quality", level="alarm", text=_constant(bar) + _ranked(bar), figures=figures)
        elif no_better_than_a_constant(run):
            others = bar.beaten(pooled=True)
            text = _no_better(bar, others) + ("" if others else _ranked(bar))
            yield Finding(kind="quality", level="note" if others else "alarm", text=text, figures=figures)


def _written_alike(run: RunRecords) -> Iterator[Finding]:
    """Look at the few answers that are shown, where nothing else is known of what the model writes."""
    answers = run.examples.answers if run.examples is not None else ()
    said, asked = Counter(one.tuned.strip() for one in answers), {one.prompt for one in answers}
    wanted = Counter(one.wanted for one in answers if one.wanted is not None)
    share = max(wanted.values(), default=0) / max(1, len(answers))
    if len(said) == 1 and len(asked) >= FEW and share ** len(answers) <= CHANCE:
        (text,) = said
        told = f"Not usable: it always answers {_said(text)}, to all {counted(len(answers), 'held-out prompt')} asked."
        yield Finding(kind="quality", level="alarm", text=told, figures={"given": text, "count": len(answers)})


def _is_constant(bar: Bar) -> bool:
    """Say whether nearly all answers are one, and it is not chance that their truths are."""
    baseline, n = bar.baseline, bar.tuned.n
    if not baseline.total or baseline.share**n > CHANCE:
        return False
    true = {name: wanted / baseline.total for name, wanted, _ in baseline.classes}.get(baseline.given, baseline.share)
    share = baseline.count / baseline.total
    return share == 1 or (share >= MOSTLY and true <= SELDOM)


def _constant(bar: Bar) -> str:
    baseline, split = bar.baseline, bar.run.evaluation.split
    of, said = f"{counted(baseline.total, baseline.unit)} of the {split} split", _said(baseline.given)
    what = f"always answers {said}, to all {of}"
    if baseline.count < baseline.total:
        what = f"answers {said} to {baseline.count:,} of {of}"
    figure = f"{bar.run.evaluation.metrics[bar.metric].label} {with_interval(bar.tuned)}"
    return f"Not usable: it {what}; {figure}.{of_answers(bar.run)}"


def _no_better(bar: Bar, others: list[str]) -> str:
    higher, pair = bar.gain is not None and bar.gain.value > 0, bar.pair(bar.metric)
    lead = f"No better than {bar.answer}: {pair}."
    if bar.gain is not None and higher:
        lead = f"Not shown to be better than {bar.answer}: {bar.difference(bar.gain)}."
    if others:
        told = " and ".join(f"{bar.pair(name)} by guessing" for name in [*others, *bar.beaten(pooled=False)])
        return f"{lead} But it does more than guess: {told}."
    exact, metric = of_answers(bar.run), bar.run.evaluation.metrics[bar.metric]
    if higher or (metric.decides and bar.tuned.value):  # a text may be good and unlike its reference
        return f"{lead}{exact}"
    return f"Not usable: no better than {bar.answer}, {pair}.{exact}"


def of_answers(run: RunRecords) -> str:
    """Say how many answers are exact where their figure decides, and where there is none that they are to be read."""
    paired, metric = run.evaluation.paired, run.evaluation.metrics[run.headline_metric or ""]
    if not metric.decides:
        shown = run.examples is not None and run.examples.answers
        return " What it writes was not measured: read its answers." if shown else ""
    if paired is None or paired.evaluator != metric.evaluator:
        return ""
    right, before = paired.both + paired.only_tuned, paired.both + paired.only_base
    return f" {right:,} of {right + paired.only_base + paired.neither:,} answers are exact ({before:,} of its base's)."


def _ranked(bar: Bar) -> str:
    """Say where scores tell examples apart although answers do not."""
    told = [f"{bar.pair(name)} by guessing" for name in bar.beaten(pooled=False)]
    return f" Its scores say more than its answers: {' and '.join(told)}." if told else ""


def _said(answer: str) -> str:
    return quoted(answer) if answer.strip() else "nothing"
