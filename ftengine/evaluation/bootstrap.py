"""The streaming bootstrap of evaluators: sums in, figures with intervals out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftengine.api import EvaluationContext, Evaluator, Metric, Prediction
from ftengine.errors import PluginError
from ftengine.evaluation.proportions import excess_interval, score_interval
from ftengine.evaluation.requirements import check_evaluators, claim
from ftengine.evaluation.resampling import Interval, percentile_interval, poisson_weights

BATCH = 256
"""Examples whose weights are drawn together: 2 MB at 1,000 resamples."""


@dataclass(frozen=True)
class Figure:
    """One metric with its resamples.

    Args:
        value: from the plain sums; nan where undefined.
        resampled: (B,) from the weighted sums.
        interval: 95 %.
        size: independent examples behind it, or as many of equal weight as they are worth.
        trials: for a proportion, the most independent trials behind it; its interval is a score interval.
        higher_is_better: None where the evaluator does not say.
        scored: whether the interval rests on a score interval, and so that of a difference must.
    """

    value: float
    resampled: np.ndarray
    interval: Interval
    size: float
    trials: float | None
    higher_is_better: bool | None
    scored: bool = False


class Accumulator:
    """Adds up evaluators' statistics over the examples of one split, and over all resamples at once.

    Memory is (resamples + 1) × (1 + the evaluators' S numbers), whatever the number of examples. Each
    example is given once, in any order, to any of the accumulators that are merged later.
    """

    def __init__(
        self,
        evaluators: Sequence[Evaluator],
        context: EvaluationContext,
        resamples: int = 1000,
        seed: int = 0,
        *,
        predicts: Collection[str] | None = None,
        distinct: int | None = None,
        bound: bool = False,
    ) -> None:
        """Check the evaluators and bind them.

        Args:
            evaluators: what is measured.
            context: what they may know beside the predictions.
            resamples: bootstrap resamples behind each interval.
            seed: with an example's index, decides its weights.
            predicts: the keys of the task's predictions; None where `check_evaluators` has seen them before.
            distinct: how many different examples the split holds, where some stand there more than once; they
                decide how wide the intervals are.
            bound: whether the evaluators know their context already (and may have been fitted since).

        Raises:
            RecipeError: an evaluator does not suit the task, or two report one metric.
        """
        check_evaluators(evaluators, context.task, predicts)
        for evaluator in evaluators if not bound else ():
            evaluator.bind(context)
        self.context = context
        self.evaluators = list(evaluators)
        self.resamples = resamples
        self.seed = seed
        self.distinct = distinct
        self._widths: list[int] = []
        # (resamples + 1, 1 + all S): row 0 plain, the others weighted; column 0 counts examples.
        self._sums: np.ndarray | None = None
        self._counts: list[Counter[Hashable]] = [Counter() for _ in self.evaluators]
        self._waiting: list[tuple[int, np.ndarray]] = []
        self._figures: dict[str, Figure] | None = None  # until another example comes

    def update(self, index: int, prediction: Prediction) -> None:
        """Add one example.

        Args:
            index: what its weights hang on: its position in the split, or a number that duplicates share.
            prediction: what the task said of it.
        """
        rows = [np.asarray(evaluator.statistics(prediction), dtype=np.float64) for evaluator in self.evaluators]
        for evaluator, counts in zip(self.evaluators, self._counts, strict=True):
            counts.update(evaluator.counts(prediction))
        self._expect([len(row) for row in rows])
        self._waiting.append((index, np.concatenate([np.ones(1), *rows])))
        self._figures = None
        if len(self._waiting) == BATCH:
            self._flush()

    def merge(self, other: Accumulator, *, apart: bool = False) -> None:
        """Add what was accumulated over other examples.

        Args:
            other: of another process over the same split, or of another split.
            apart: whether it is of another split, whose distinct examples count beside those here.

        Raises:
            ValueError: the other one resamples differently or runs other evaluators.
        """
        self.require_alike(other)
        other._flush()
        self._flush()
        self._figures = None
        if apart:
            self.distinct = self.independent + other.independent
        if other._sums is not None:
            self._expect(other._widths)
            self._sums = other._sums.copy() if self._sums is None else self._sums + other._sums
        for mine, theirs in zip(self._counts, other._counts, strict=True):
            mine.update(theirs)

    @property
    def examples(self) -> int:
        """How many examples were added."""
        self._flush()
        return 0 if self._sums is None else round(self._sums[0, 0])

    @property
    def independent(self) -> int:
        """How many examples count in intervals: all that were added, duplicates once."""
        return self.examples if self.distinct is None else min(self.examples, self.distinct)

    def weight_totals(self) -> np.ndarray:
        """Return the weights' sum in each resample, shape (resamples,): equal for equal sets of examples."""
        return self._weights()[1:]

    def sums(self) -> dict[str, np.ndarray]:
        """Return the sums by evaluator name, each (resamples + 1, S), row 0 plain; empty before any example."""
        return {evaluator.name: sums for evaluator, sums, _ in self._measured()}

    def figures(self) -> dict[str, Figure]:
        """Return every metric with its resamples; none before any example."""
        if self._figures is None:
            self._figures = self._made()
        return self._figures

    def _made(self) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        owners: dict[str, str] = {}
        n = self.independent
        for evaluator, sums, _ in self._measured():
            # Resamples may well be without a class or a token; what is undefined there is nan, not a warning.
            with np.errstate(all="ignore"):
                trials, metrics = evaluator.trials(sums[0]), evaluator.metrics(sums)
                excess, sizes = evaluator.excess(sums), evaluator.sizes(sums[0])
            for name, values in metrics.items():
                claim(owners, name, evaluator)
                value, resampled = float(values[0]), np.asarray(values[1:])
                if name in evaluator.biased:  # what resamples of it say is not true of it
                    resampled = np.full_like(resampled, np.nan)
                most = min(float(trials[name]), n) if name in trials else None
                size = n * min(1.0, sizes[name] / self.examples) if name in sizes else float(n)
                if most is not None:
                    interval = score_interval(value, resampled, most, n)
                elif name in excess:
                    interval = excess_interval(np.asarray(values), *excess[name], n)
                else:
                    interval = percentile_interval(resampled, size)
                better, scored = evaluator.higher_is_better.get(name), most is not None or name in excess
                figures[name] = Figure(value, resampled, interval, size, most, better, scored)
        return figures

    def results(self) -> dict[str, Metric]:
        """Return every metric with its 95 % interval."""
        n = self.independent
        return {name: Metric(figure.value, *figure.interval, n) for name, figure in self.figures().items()}

    def details(self) -> dict[str, Any]:
        """Return what evaluators tell beside their metrics (JSON values), by evaluator name."""
        with np.errstate(all="ignore"):
            details = {e.name: self._details(e, sums, counts) for e, sums, counts in self._measured()}
        return {name: content for name, content in details.items() if content}

    def _details(self, evaluator: Evaluator, sums: np.ndarray, counts: Counter[Hashable]) -> dict[str, Any]:
        details = dict(evaluator.details(sums[0], counts))
        if evaluator.parts in details:
            figures, trials, n = evaluator.by_part(sums), evaluator.part_trials(sums[0]), self.independent
            for i, row in enumerate(details[evaluator.parts]):
                for name, values in figures.items():
                    value, resampled = float(values[0, i]), values[1:, i]
                    low, high = (
                        score_interval(value, resampled, min(float(trials[name][i]), n), n)
                        if name in trials
                        else percentile_interval(resampled, n)
                    )
                    row[name] = value if math.isfinite(value) else None
                    row[f"{name}_interval"] = None if low is None else [low, high]
        return details

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all that `from_arrays` needs: "examples" (resamples + 1,) weights, and the sums by evaluator name.

        Counts of examples (details) are left out.
        """
        return {"examples": self._weights(), **{f"sums.{name}": sums for name, sums in self.sums().items()}}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        evaluators: Sequence[Evaluator],
        context: EvaluationContext,
        *,
        seed: int,
        distinct: int | None,
    ) -> Accumulator:
        """Return an accumulator that stands where another one stood when it gave its arrays.

        Raises:
            ValueError: the evaluators are not those whose sums these are.
        """
        found = [name.removeprefix("sums.") for name in arrays if name != "examples"]
        if sorted(found) != sorted(evaluator.name for evaluator in evaluators):
            raise ValueError(f"sums of evaluators {found}, expected {[evaluator.name for evaluator in evaluators]}.")
        examples = arrays["examples"]
        result = cls(evaluators, context, len(examples) - 1, seed, distinct=distinct)
        parts = [arrays[f"sums.{evaluator.name}"] for evaluator in evaluators]
        result._widths = [part.shape[1] for part in parts]
        result._sums = np.concatenate([examples[:, None], *parts], axis=1)
        return result

    def without(self, part: Accumulator, distinct: int | None = None) -> Accumulator:
        """Return the accumulator of all examples but those of `part`, which were added here too.

        `part` may run fewer evaluators; the result runs those. Counts of examples (details) are left out.

        Args:
            distinct: how many different examples the others are, where some of them stand in `part` as well; by
                default as many fewer.

        Raises:
            ValueError: the other one resamples differently.
        """
        part._flush()
        names = {evaluator.name for evaluator in part.evaluators}
        evaluators = [evaluator for evaluator in self.evaluators if evaluator.name in names]
        if distinct is None and None not in (self.distinct, part.distinct):
            distinct = self.independent - part.independent
        result = Accumulator(evaluators, self.context, self.resamples, self.seed, distinct=distinct, bound=True)
        result.require_alike(part)
        sums = self.sums()
        columns = [self._weights()[:, None], *(sums[evaluator.name] for evaluator in evaluators if sums)]
        result._widths = [column.shape[1] for column in columns[1:]]
        if result._widths:
            whole = np.concatenate(columns, axis=1)
            result._sums = whole if part._sums is None else whole - part._sums
        return result

    def require_alike(self, other: Accumulator) -> None:
        """Refuse an accumulator whose sums mean something else.

        Raises:
            ValueError: resamples, seed or evaluators differ; the message gives both.
        """
        mine, theirs = ((a.resamples, a.seed, [evaluator.name for evaluator in a.evaluators]) for a in (self, other))
        if mine != theirs:
            raise ValueError(f"accumulators differ in (resamples, seed, evaluators): {mine} and {theirs}.")

    def _weights(self) -> np.ndarray:
        self._flush()
        return np.zeros(self.resamples + 1) if self._sums is None else self._sums[:, 0]

    def _measured(self) -> Iterator[tuple[Evaluator, np.ndarray, Counter[Hashable]]]:
        self._flush()
        if self._sums is None:
            return
        start = 1
        for evaluator, width, counts in zip(self.evaluators, self._widths, self._counts, strict=True):
            yield evaluator, self._sums[:, start : start + width], counts
            start += width

    def _expect(self, widths: list[int]) -> None:
        self._widths = self._widths or widths
        if widths != self._widths:
            for evaluator, before, now in zip(self.evaluators, self._widths, widths, strict=True):
                if before != now:
                    raise PluginError(
                        f"evaluator {evaluator.name!r} returned {now} statistics for an example and {before} for "
                        "another; every example gives equally many."
                    )

    def _flush(self) -> None:
        if not self._waiting:
            return
        indices, rows = zip(*self._waiting, strict=True)
        self._waiting = []
        matrix = np.stack(rows)
        if self._sums is None:
            self._sums = np.zeros((self.resamples + 1, matrix.shape[1]))
        with np.errstate(all="ignore"):  # a statistic that is not finite shows in the figures
            self._sums[0] += matrix.sum(axis=0)
            self._sums[1:] += poisson_weights(self.seed, indices, self.resamples).T @ matrix
