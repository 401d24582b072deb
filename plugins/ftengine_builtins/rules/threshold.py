"""The threshold that a useful model must exceed: the figure of the best constant answer, or of chance."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftengine import RunRecords
from ftengine.api import Baseline, Difference, Estimate
from ftengine.evaluation import near_end
from ftengine.text import (
    capitalized,
    change_of,
    ends,
    has_value,
    plain,
    quoted,
    tuned_and_base,
    value_of,
    with_interval,
)

FAR = 0.3
"""Share of the way from guessing to 1 (ROC AUC 0.65, correlation 0.3) from which an interval of a ranking that reaches
so far leaves room for scores that know much."""

ROOM = 0.05
"""A preference model is not called useless if it may be this much better than guessing, at the interval's far end."""

RARE, LEARNABLE, RANKED = 0.25, 50, 20
"""Share of the training rows up to which classes are rare, and examples in training, and held-out ones, below which it
is no sign of wrong labels that they are never answered and that scores do not rank them."""

GAP_ALARM = 0.10
"""Gap between training and held-out figures, in points of a proportion and at the interval's near end, from which
the model's figures on what it has seen are another matter than on what is new. Some gap is normal: it was trained
on the one and not on the other."""


@dataclass(frozen=True)
class Threshold:
    """The best constant answer, or chance, with which the tuned model is compared.

    Args:
        metric: the headline metric if its evaluator reports a baseline, else the first metric with a baseline.
        baseline: the baseline of the metric's evaluator.
    """

    run: RunRecords
    metric: str
    baseline: Baseline

    @property
    def tuned(self) -> Estimate:
        return self.run.evaluation.tuned[self.metric]

    @property
    def answer(self) -> str:
        """The baseline in words, such as "always answering “no”"."""
        return self.baseline.way or f"always answering {quoted_answer(self.baseline.answer)}"

    @property
    def gain(self) -> Difference | None:
        """The tuned model's figure minus the baseline's; None without interval, or if all references are the same."""
        return None if self.baseline.share == 1 else self._gain(self.metric)

    @property
    def missed(self) -> bool:
        """Whether the model is not shown to be better than the baseline."""
        return self.gain is not None and not self.gain.better

    @property
    def is_ahead(self) -> bool:
        """Whether the tuned model's figure is better than the baseline's, even if only by chance."""
        higher, gain = self.run.evaluation.metrics[self.metric].higher_is_better, self.gain
        return gain is not None and gain.value != 0 and (gain.value > 0) == higher

    @property
    def may_be_better(self) -> bool:
        """Whether it is not significantly worse than the baseline, and ranks significantly better than guessing."""
        return self.gain is not None and self.gain.better is not False and bool(self.beaten(pooled=False))

    @property
    def is_hint(self) -> bool:
        """Whether a model may be useful without exceeding the baseline: one that prefers answers and has no new head.

        Preferences are measured against the base; a model with a new head has only its answers.
        """
        return bool(self.baseline.way) and not self.run.trained.new_modules

    @property
    def leaves_room(self) -> bool:
        """Whether it prefers answers, and may exceed guessing by ROOM."""
        return bool(self.baseline.way) and self.gain is not None and ends(self.gain)[1] >= ROOM

    def beaten(self, *, pooled: bool) -> list[str]:
        """Return the other metrics that are better than their baseline, with this value of `Metric.pooled`."""
        metrics = self.run.evaluation.metrics
        others = [name for name in self.baseline.figures if name != self.metric and name in metrics]
        gains = {name: self._gain(name) for name in others if metrics[name].pooled == pooled}
        return [name for name, gain in gains.items() if gain is not None and gain.better]

    @property
    def rankings(self) -> dict[str, Estimate]:
        """The tuned model's rankings with intervals; {} if one has no interval, or all references are the same."""
        evaluation = self.run.evaluation
        ranked = [x for x in self.baseline.figures if x in evaluation.metrics and not evaluation.metrics[x].pooled]
        figures = {name: evaluation.tuned[name] for name in ranked if has_value(evaluation.tuned.get(name))}
        usable = self.baseline.share != 1 and all(ends(figure) is not None for figure in figures.values())
        return figures if usable else {}

    def may_be_far(self, name: str) -> bool:
        """Return whether a ranking's interval reaches far above guessing."""
        level = self.baseline.figures[name]
        return self.rankings[name].high > level + FAR * (1 - level)

    def pair(self, metric: str) -> str:
        """Return a metric's label, the tuned model's value with its interval, and the baseline's value."""
        label = self.run.evaluation.metrics[metric].label
        return f"{label} {with_interval(self.run.evaluation.tuned[metric])} against {plain(self.reached(metric))}"

    @property
    def best_answer(self) -> str:
        """The baseline with its value: "always answering “no” (60 %)"."""
        metric = shown_metric(self.run, self.metric)
        metric = metric if metric in self.baseline.figures else self.metric
        return f"{self.answer} ({value_of(self.run.evaluation.metrics[metric], self.reached(metric))})"

    @property
    def size(self) -> str:
        """The difference from the baseline with its interval; "" if there is none."""
        metric = shown_metric(self.run, self.metric)
        metric = metric if self._gain(metric) is not None else self.metric
        gain = self._gain(metric) or self.gain
        return "" if gain is None else change_of(self.run.evaluation.metrics[metric], gain)

    def figures(self) -> dict[str, Any]:
        """Return the figures of `pair` and their difference, for a finding."""
        level = self.baseline.figures[self.metric]
        return {"metric": self.metric, "tuned": self.tuned, "baseline": level, "difference": self.gain}

    def reached(self, metric: str = "") -> Estimate:
        """Return the baseline's value of a metric, by default the threshold's."""
        return Estimate(self.baseline.figures[metric or self.metric], None, None, 0)

    def _gain(self, metric: str) -> Difference | None:
        """Return the metric's difference from its baseline; None without an interval."""
        gain = self.baseline.gains.get(metric)
        return gain if has_value(gain) and ends(gain) is not None else None


def shown_metric(run: RunRecords, metric: str) -> str:
    """Return the metric that is shown in words in place of another (`shown_as`), if it is defined; else that one."""
    name, evaluation = run.evaluation.metrics[metric].shown_as, run.evaluation
    measured = name in evaluation.metrics and has_value(evaluation.tuned.get(name))
    return name if measured and has_value(evaluation.tuned.get(metric)) else metric


def both_figures(run: RunRecords, metric: str) -> str:
    """Return "accuracy 82 %, base 17 %" for the tuned model and its base."""
    evaluation, untrained, metric = run.evaluation, bool(run.trained.new_modules), shown_metric(run, metric)
    return tuned_and_base(
        evaluation.metrics[metric], evaluation.tuned[metric], evaluation.base.get(metric), untrained=untrained
    )


def led_by_figures(run: RunRecords, metric: str, judgement: str) -> str:
    """Return "Accuracy 82 %, base 17 %: better, …": the figures of tuned model and base, then a judgement."""
    return f"{capitalized(both_figures(run, metric))}: {judgement}"


def threshold_of(run: RunRecords) -> Threshold | None:
    """Return the threshold of a run; None if no evaluator reports a baseline."""
    tuned, baselines = run.evaluation.tuned, {}
    for details in run.evaluation.details.tuned.values():
        if (baseline := Baseline.of(details)) is not None:
            baselines |= {
                metric: baseline for metric in baseline.figures if metric in tuned and metric not in baselines
            }
    metric = run.headline_metric if run.headline_metric in baselines else next(iter(baselines), None)
    return None if metric is None else Threshold(run, metric, baselines[metric])


def no_better_than_a_constant(run: RunRecords) -> bool:
    """Return whether the tuned model is not shown to be better than the best constant answer.

    False if all references are the same, as no model can then be better.
    """
    threshold = threshold_of(run)
    return threshold is not None and threshold.missed and not threshold.is_hint


def is_better_than_a_constant(run: RunRecords) -> bool:
    """Return whether the tuned model is shown to be better than the best constant answer."""
    threshold = threshold_of(run)
    return threshold is not None and threshold.gain is not None and bool(threshold.gain.better)


def knows_no_labels(run: RunRecords) -> bool:
    """Return whether all rankings show scores without information about labels, or below guessing.

    Where one class is always answered and the others are rare, they say nothing of the labels.
    """
    return not answers_no_rare_class(run) and bool(uninformative(run) or wrong_way_round(run))


def answers_no_rare_class(run: RunRecords) -> bool:
    """Return whether the answer is always the same, and all other classes are rare and of too few examples to learn."""
    threshold, labels = threshold_of(run), run.trained.labels
    if threshold is None or labels is None or not labels.counts:
        return False
    trained = dict(zip(labels.names, labels.counts, strict=True))
    given = [name for name, _, answered in threshold.baseline.classes if answered]
    if len(given) != 1 or given[0] not in trained:
        return False
    others, rows = sum(labels.counts) - trained[given[0]], sum(labels.counts)
    held = sum(true for name, true, _ in threshold.baseline.classes if name != given[0])
    return 0 < others <= RARE * rows and (others < LEARNABLE or held < RANKED)


def uninformative(run: RunRecords) -> dict[str, Estimate]:
    """Return the tuned model's rankings if none differs from guessing; else {}.

    A ranking (ROC AUC, a correlation) does not differ if guessing is inside its interval and the interval does not
    reach far above it. With few examples it may, unless the same scores rank training examples far better.
    """
    threshold = threshold_of(run)
    if threshold is None:
        return {}
    figures = threshold.rankings
    within = [
        figure.low <= threshold.baseline.figures[name] <= figure.high
        and (not threshold.may_be_far(name) or ranks_training_examples(run, name))
        for name, figure in figures.items()
    ]
    return figures if all(within) else {}


def wrong_way_round(run: RunRecords) -> dict[str, Estimate]:
    """Return the rankings that are significantly below guessing; {} if another one is significantly above."""
    threshold = threshold_of(run)
    if threshold is None:
        return {}
    figures, reached = threshold.rankings, threshold.baseline.figures
    below = {name: figure for name, figure in figures.items() if figure.high < reached[name]}
    return below if all(figure.low <= reached[name] for name, figure in figures.items()) else {}


def ranks_training_examples(run: RunRecords, name: str) -> bool:
    """Return whether a ranking is far better on training examples than on held-out ones."""
    gap = None if run.evaluation.training is None else run.evaluation.training.gap.get(name)
    return gap is not None and bool(gap.better) and near_end(gap) >= GAP_ALARM


def quoted_answer(answer: str) -> str:
    """Return an answer in quotes; "nothing" for a blank one."""
    return quoted(answer) if answer.strip() else "nothing"


def confusions(run: RunRecords) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield the labels and (labels, answers) counts of each evaluator that reports a confusion matrix."""
    for facts in run.evaluation.details.tuned.values():
        if (cells := facts.get("confusion")) is not None:
            yield [row["label"] for row in facts["labels"]], np.array(cells, dtype=np.int64)
