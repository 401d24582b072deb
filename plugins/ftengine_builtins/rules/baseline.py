"""Rules about the answers: the tuned model against what is reached without looking, and classes it never gives."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ftengine import RunRecords
from ftengine.api import Baseline, Difference, Estimate, Finding, Rule
from ftengine.evaluation import CHANCE
from ftengine.text import FEW, against, counted, ends, known, listed, plain, quoted, short, with_interval

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
class Threshold:
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
        return f"always answering {_quoted_answer(self.baseline.answer)}"

    @property
    def gain(self) -> Difference | None:
        """The tuned model's figure minus that; None without an interval, or where all examples have one truth."""
        return None if self.baseline.share == 1 else self._gain(self.metric)

    def beaten(self, *, pooled: bool) -> list[str]:
        """Return the other metrics that are better than without looking; `pooled` as `Metric` has it."""
        metrics = self.run.evaluation.metrics
        others = [name for name in self.baseline.figures if name != self.metric and name in metrics]
        gains = {name: self._gain(name) for name in others if metrics[name].pooled == pooled}
        return [name for name, gain in gains.items() if gain is not None and gain.better]

    def pair(self, metric: str) -> str:
        """Return a metric's name, the tuned model's value with its interval, and what is reached without looking."""
        label = self.run.evaluation.metrics[metric].label
        return f"{label} {with_interval(self.run.evaluation.tuned[metric])} against {plain(self._level(metric))}"

    def comparison(self) -> str:
        """Return the metric's name, both values, and the difference with its interval."""
        pair = against(self.tuned, self._level(self.metric))
        size = with_interval(self.gain, sign=True)
        return f"{self.run.evaluation.metrics[self.metric].label} {pair}, a difference of {size}"

    def figures(self) -> dict[str, Any]:
        """Return the figures of `pair` and `comparison` as a finding holds them."""
        level = self.baseline.figures[self.metric]
        return {"metric": self.metric, "tuned": self.tuned, "baseline": level, "difference": self.gain}

    def _level(self, metric: str) -> Estimate:
        return Estimate(self.baseline.figures[metric], None, None, 0)

    def _gain(self, metric: str) -> Difference | None:
        """Return the metric's difference from what is reached without looking; None where it has no interval."""
        gain = self.baseline.gains.get(metric)
        return gain if known(gain) and ends(gain) is not None else None


def threshold_of(run: RunRecords) -> Threshold | None:
    """Return what the tuned model is measured by; None where no evaluator says what is reached without looking."""
    tuned, found = run.evaluation.tuned, {}
    for details in run.evaluation.details.tuned.values():
        if (baseline := Baseline.of(details)) is not None:
            found |= {metric: baseline for metric in baseline.figures if metric in tuned and metric not in found}
    metric = run.headline_metric if run.headline_metric in found else next(iter(found), None)
    return None if metric is None else Threshold(run, metric, found[metric])


def no_better_than_a_constant(run: RunRecords) -> bool:
    """Say whether the tuned model is not shown to be better than the best constant answer.

    Where all held-out examples have one truth, none can be better, and nothing is said.
    """
    threshold = threshold_of(run)
    return threshold is not None and threshold.gain is not None and not threshold.gain.better


class ConstantAnswer(Rule):
    """Finds a model that always answers the same, or that is no better than doing so, or than chance."""

    name = "constant-answer"
    order = 0
    about = "its answers"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        threshold = threshold_of(run)
        if threshold is None:
            yield from _written_alike(run)
            return
        baseline, split = threshold.baseline, run.evaluation.split
        others = {metric: run.evaluation.tuned.get(metric) for metric in baseline.figures if metric != threshold.metric}
        reached = baseline.model_dump(mode="json", exclude={"classes", "gains"})
        figures = {**threshold.figures(), **reached, "others": others, **exact_answers(run)}
        if baseline.share == 1:
            only = _quoted_answer(baseline.answer)
            text = f"The {split} split has one answer only ({only}): figures say nothing of others."
            yield Finding(kind="baseline", level="note", text=text, figures=figures)
        elif _is_constant(threshold):
            text = _constant(threshold) + _ranked(threshold)
            yield Finding(kind="quality", level="alarm", text=text, figures=figures)
        elif no_better_than_a_constant(run):
            beaten = threshold.beaten(pooled=True)
            text = _no_better(threshold, beaten) + ("" if beaten else _ranked(threshold))
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
        told = f"Not usable: it always answers {_quoted_answer(text)}, to all {counted(n, 'held-out prompt')} asked."
    elif count >= NEARLY * n and share <= SELDOM:
        told = f"Not usable: it answers {_quoted_answer(text)} to {count:,} of {counted(n, 'held-out prompt')} asked."
    else:
        return
    yield Finding(kind="quality", level="alarm", text=told, figures={"given": text, "count": count, "asked": n})


def _is_constant(threshold: Threshold) -> bool:
    """Say whether nearly all answers are one, and it is not chance that their truths are."""
    baseline, n = threshold.baseline, threshold.tuned.n
    if not baseline.total or baseline.share**n > CHANCE:
        return False
    true = {name: wanted / baseline.total for name, wanted, _ in baseline.classes}.get(baseline.given, baseline.share)
    share = baseline.count / baseline.total
    blanks = not baseline.given.strip() and share > SELDOM
    return share == 1 or ((share >= MOSTLY or blanks) and true <= SELDOM)


def _constant(threshold: Threshold) -> str:
    baseline, split = threshold.baseline, threshold.run.evaluation.split
    of, said = f"{counted(baseline.total, baseline.unit)} of the {split} split", _quoted_answer(baseline.given)
    what = f"always answers {said}, to all {of}"
    if baseline.count < baseline.total:
        what = f"answers {said} to {baseline.count:,} of {of}"
    label = threshold.run.evaluation.metrics[threshold.metric].label
    return f"Not usable: it {what}; {label} {with_interval(threshold.tuned)}.{of_answers(threshold.run)}"


def _no_better(threshold: Threshold, others: list[str]) -> str:
    higher, pair = _is_ahead(threshold), threshold.pair(threshold.metric)
    lead = f"No better than {threshold.answer}: {pair}."
    if higher:
        lead = f"Not shown to be better than {threshold.answer}: {threshold.comparison()}."
    if others:
        every = [*others, *threshold.beaten(pooled=False)]
        pairs = " and ".join(f"{threshold.pair(name)} by guessing" for name in every)
        return f"{lead} But it does more than guess: {pairs}."
    exact, metric = of_answers(threshold.run), threshold.run.evaluation.metrics[threshold.metric]
    if higher or (metric.primary and threshold.tuned.value):  # a text may be good and unlike its reference
        return f"{lead}{exact}"
    return f"Not usable: no better than {threshold.answer}, {pair}.{exact}"


def _is_ahead(threshold: Threshold) -> bool:
    """Say whether the tuned model's figure is the better one, by chance or not."""
    gain = threshold.gain
    assert gain is not None
    return gain.value != 0 and (gain.value > 0) == threshold.run.evaluation.metrics[threshold.metric].higher_is_better


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


def _ranked(threshold: Threshold) -> str:
    """Say where scores tell examples apart although answers do not."""
    told = [f"{threshold.pair(name)} by guessing" for name in threshold.beaten(pooled=False)]
    return f" Its scores say more than its answers: {' and '.join(told)}." if told else ""


def _quoted_answer(answer: str) -> str:
    return quoted(answer) if answer.strip() else "nothing"


class UnansweredClasses(Rule):
    """Names the classes that the tuned model never gives as its answer, though held-out examples have them."""

    name = "unanswered-classes"
    order = 2
    about = "classes that it never answers"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        threshold = threshold_of(run)
        classes = threshold.baseline.classes if threshold else ()
        never = {name: true for name, true, given in classes if true and not given}
        if threshold is None or not never:
            return
        baseline, missed = threshold.baseline, sum(never.values())
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
        threshold = threshold_of(run)
        classes = threshold.baseline.classes if threshold else ()
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
