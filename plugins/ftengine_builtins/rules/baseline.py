"""Rules about the answers: the tuned model against what is reached without looking, and classes it never gives."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ftengine import RunRecords
from ftengine.api import Baseline, Estimate, Finding, Rule
from ftengine.api.figures import FEW, against, counted, ends, known, listed, plain, quoted, short, with_interval
from ftengine_builtins.rules.chance import CHANCE, Apart

MOSTLY, SELDOM = 0.95, 0.5
"""Share of the examples to which one answer is given that counts as constant, where it is the truth of at most half."""

NEARLY = 0.9
"""The same of the answers that are only shown, a dozen by default: all but one of them."""

NEVER_ALARM, LEAST_CLASS = 0.05, 5
"""Share of the held-out examples whose class is never answered, for an alarm; counted are classes of at least so many
examples, as a class of one or two is missed by a sound model as well."""

MOST_CLASSES = 5
"""Classes that a sentence names."""


@dataclass(frozen=True)
class Bar:
    """What the tuned model is measured by: the best constant answer, or chance.

    Args:
        metric: the one that the verdict goes by, where its evaluator says what is reached without looking, else the
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

    @property
    def difference(self) -> Apart | None:
        """The tuned model's value minus what is reached without looking; None as `gain` is."""
        gain = self.gain
        return gain if gain is None or self.run.evaluation.metrics[self.metric].higher_is_better else gain.turned()

    def apart(self) -> str:
        """Return the metric's name, both values, and the difference with its interval."""
        pair = against(self.tuned, self._level(self.metric))
        size = with_interval(self.difference, sign=True)
        return f"{self.run.evaluation.metrics[self.metric].label} {pair}, a difference of {size}"

    def figures(self) -> dict[str, Any]:
        """Return the figures of `pair` and `apart` as a finding holds them."""
        level = self.baseline.figures[self.metric]
        return {"metric": self.metric, "tuned": self.tuned, "baseline": level, "difference": self.difference}

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
    about = "its answers"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        bar = bar_of(run)
        if bar is None:
            yield from _written_alike(run)
            return
        baseline, split = bar.baseline, run.evaluation.split
        others = {metric: run.evaluation.tuned.get(metric) for metric in baseline.figures if metric != bar.metric}
        reached = baseline.model_dump(mode="json", exclude={"classes", "gains"})
        figures = {**bar.figures(), **reached, "others": others, **exact_answers(run)}
        if baseline.share == 1:
            text = f"The {split} split has one answer only ({_said(baseline.answer)}): figures say nothing of others."
            yield Finding(kind="baseline", level="note", text=text, figures=figures)
        elif _is_constant(bar):
            yield Finding(kind="quality", level="alarm", text=_constant(bar) + _ranked(bar), figures=figures)
        elif no_better_than_a_constant(run):
            beaten = bar.beaten(pooled=True)
            text = _no_better(bar, beaten) + ("" if beaten else _ranked(bar))
            yield Finding(kind="quality", level="note" if beaten else "alarm", text=text, figures=figures)


def _written_alike(run: RunRecords) -> Iterator[Finding]:
    """Look at the few answers that are shown, where nothing else is known of what the model writes."""
    answers = run.examples.answers if run.examples is not None else ()
    n, said = len(answers), Counter(one.tuned.strip() for one in answers)
    wanted = Counter(one.wanted for one in answers if one.wanted is not None)
    share = max(wanted.values(), default=0) / max(1, n)
    if len({one.prompt for one in answers}) < FEW or share**n > CHANCE:
        return
    blank = sum(not one.tuned.strip() and one.wanted != "" for one in answers)
    text, count = said.most_common(1)[0]
    if blank > SELDOM * n:
        text, count, told = "", blank, f"Not usable: {blank:,} of {n:,} answers are blank."
    elif count == n:
        told = f"Not usable: it always answers {_said(text)}, to all {counted(n, 'held-out prompt')} asked."
    elif count >= NEARLY * n and share <= SELDOM:
        told = f"Not usable: it answers {_said(text)} to {count:,} of {counted(n, 'held-out prompt')} asked."
    else:
        return
    yield Finding(kind="quality", level="alarm", text=told, figures={"given": text, "count": count, "asked": n})


def _is_constant(bar: Bar) -> bool:
    """Say whether nearly all answers are one, and it is not chance that their truths are."""
    baseline, n = bar.baseline, bar.tuned.n
    if not baseline.total or baseline.share**n > CHANCE:
        return False
    true = {name: wanted / baseline.total for name, wanted, _ in baseline.classes}.get(baseline.given, baseline.share)
    share = baseline.count / baseline.total
    blanks = not baseline.given.strip() and share > SELDOM
    return share == 1 or ((share >= MOSTLY or blanks) and true <= SELDOM)


def _constant(bar: Bar) -> str:
    baseline, split = bar.baseline, bar.run.evaluation.split
    of, said = f"{counted(baseline.total, baseline.unit)} of the {split} split", _said(baseline.given)
    what = f"always answers {said}, to all {of}"
    if baseline.count < baseline.total:
        what = f"answers {said} to {baseline.count:,} of {of}"
    label = bar.run.evaluation.metrics[bar.metric].label
    return f"Not usable: it {what}; {label} {with_interval(bar.tuned)}.{of_answers(bar.run)}"


def _no_better(bar: Bar, others: list[str]) -> str:
    higher, pair = bar.gain.value > 0, bar.pair(bar.metric)
    lead = f"No better than {bar.answer}: {pair}."
    if higher:
        lead = f"Not shown to be better than {bar.answer}: {bar.apart()}."
    if others:
        told = " and ".join(f"{bar.pair(name)} by guessing" for name in [*others, *bar.beaten(pooled=False)])
        return f"{lead} But it does more than guess: {told}."
    exact, metric = of_answers(bar.run), bar.run.evaluation.metrics[bar.metric]
    if higher or (metric.primary and bar.tuned.value):  # a text may be good and unlike its reference
        return f"{lead}{exact}"
    return f"Not usable: no better than {bar.answer}, {pair}.{exact}"


def unmeasured_answers(run: RunRecords) -> bool:
    """Say whether the tuned model writes texts that the metric which decides does not measure."""
    writes = run.examples is not None and run.examples.writes
    return writes and not run.evaluation.metrics[run.headline_metric or ""].primary


def of_answers(run: RunRecords) -> str:
    """Say how many answers are exact where their figure decides, and where there is none that they are to be read."""
    if not run.evaluation.metrics[run.headline_metric or ""].primary:
        shown = run.examples is not None and run.examples.answers
        told = "No metric scored its generated text"
        return f" {told}: read its answers." if shown else f" {told}." if unmeasured_answers(run) else ""
    found = exact_answers(run)
    text = " {exact:,} of {answers:,} answers are exact ({base_exact:,} of its base's)."
    return text.format(**found) if found else ""


def exact_answers(run: RunRecords) -> dict[str, int]:
    """Return how many answers are exact, of the tuned model and of its base; {} where no figure of them decides."""
    paired, metric = run.evaluation.paired, run.evaluation.metrics[run.headline_metric or ""]
    if paired is None or not metric.primary or paired.evaluator != metric.evaluator:
        return {}
    exact, before = paired.both + paired.only_tuned, paired.both + paired.only_base
    return {"exact": exact, "base_exact": before, "answers": exact + paired.only_base + paired.neither}


def _ranked(bar: Bar) -> str:
    """Say where scores tell examples apart although answers do not."""
    told = [f"{bar.pair(name)} by guessing" for name in bar.beaten(pooled=False)]
    return f" Its scores say more than its answers: {' and '.join(told)}." if told else ""


def _said(answer: str) -> str:
    return quoted(answer) if answer.strip() else "nothing"


class UnansweredClasses(Rule):
    """Names the classes that the tuned model never gives as its answer, though held-out examples have them."""

    name = "unanswered-classes"
    order = 2
    about = "classes that it never answers"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        bar = bar_of(run)
        never = {name: true for name, true, given in bar.baseline.classes if true and not given} if bar else {}
        if bar is None or not never:
            return
        baseline, missed = bar.baseline, sum(never.values())
        shown = [quoted(name) for name in never][:MOST_CLASSES]
        if len(never) > MOST_CLASSES:
            shown.append(counted(len(never) - MOST_CLASSES, "other class", "other classes"))
        large = sum(true for true in never.values() if true >= LEAST_CLASS)
        level = "alarm" if large >= NEVER_ALARM * baseline.total else "note"
        of = f"{missed:,} of {baseline.total:,} held-out {baseline.unit}s"
        text = f"Never answers {listed(shown, 'or')}, the truth of {of}."
        figures = {"never": list(never), "examples": missed, "total": baseline.total}
        yield Finding(kind="classes", level=level, text=text, figures=figures)


class UntestedClasses(Rule):
    """Names the classes of which the held-out split has no example."""

    name = "untested-classes"
    order = 2

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        bar = bar_of(run)
        classes = bar.baseline.classes if bar else ()
        absent = [name for name, true, _ in classes if not true]
        if not absent:
            return
        shown = [short(name) for name in absent[:MOST_CLASSES]]
        if len(absent) > MOST_CLASSES:
            shown.append(f"{len(absent) - MOST_CLASSES:,} more")
        has, it = ("has", "it is") if len(absent) == 1 else ("have", "they are")
        text = f"{len(absent):,} of {counted(len(classes), 'class', 'classes')} {has} no held-out example "
        text += f"({listed(shown)}): nothing is known of how well {it} recognised."
        figures = {"untested": absent, "classes": len(classes)}
        yield Finding(kind="classes", level="note", text=text, figures=figures)
