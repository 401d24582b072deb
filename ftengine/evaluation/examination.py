"""A set of examples, what is measured on it, and what one model came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from ftengine.api import EvaluationContext, Evaluator, Prediction, Shows
from ftengine.data.encoding import EncodedSplit
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.judgements import Judgements, Spool, judges
from ftengine.evaluation.slices import Slicing
from ftengine.evaluation.stream import ModelStream
from ftengine.evaluation.sums import ANSWERS, PREDICTIONS, Sums


@dataclass(frozen=True)
class Examination:
    """Examples, and what is measured on them.

    Args:
        title: what a listener is told.
        split: the examples.
        reading: evaluators of the task's predictions.
        answering: evaluators of its free answers.
        answered: (n,) the members that are answered freely.
        options: how they are answered.
        slices: columns that divide the examples; measured by the first evaluator alone.
        judged: whether the judgement of each example is kept.
        shown: whether the answers are kept as well, on disk.
    """

    title: str
    split: EncodedSplit
    reading: Sequence[Evaluator]
    answering: Sequence[Evaluator] = ()
    answered: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    options: Mapping[str, Any] = field(default_factory=dict)
    slices: Mapping[str, Slicing] = field(default_factory=dict)
    judged: bool = False
    shown: bool = False

    @property
    def first(self) -> Evaluator:
        """The evaluator that slices are measured by."""
        return next(iter([*self.reading, *self.answering]))

    def passes(self) -> dict[str, tuple[Sequence[Evaluator], np.ndarray]]:
        """Return for each pass that is needed its evaluators and the members it goes over."""
        passes = {
            PREDICTIONS: (self.reading, np.arange(len(self.split))),
            ANSWERS: (self.answering, self.answered),
        }
        return {name: one for name, one in passes.items() if one[0]}


@dataclass
class Outcome:
    """What one model came to on one set of examples.

    Args:
        sums: of all evaluators.
        slices: for each column an accumulator a slice.
        sliced: the accumulator of all examples that goes with them.
        judgements: by evaluator.
        spools: by pass the answers, of this process's share of the examples.
        judged_in: the pass that each judging evaluator belongs to.
    """

    sums: Sums = field(default_factory=Sums)
    slices: dict[str, list[Accumulator]] = field(default_factory=dict)
    sliced: list[Accumulator] = field(default_factory=list)
    judgements: dict[str, Judgements] = field(default_factory=dict)
    spools: dict[str, Spool] = field(default_factory=dict)
    judged_in: dict[str, str] = field(default_factory=dict)

    def gather(self) -> None:
        """Add up what all processes measured; each has all of it then, and its own spools."""
        mine = (self.sums, self.slices | {"": self.sliced}, self.judgements)
        (self.sums, parts, self.judgements), *others = gather_object([mine])
        for sums, slices, judgements in others:
            self.sums.merge(sums)
            for column, accumulators in slices.items():
                for one, other in zip(parts[column], accumulators, strict=True):
                    one.merge(other)
            for name, other_judgements in judgements.items():
                self.judgements[name].merge(other_judgements)
        self.sliced = parts.pop("")
        self.slices = parts


@dataclass(frozen=True)
class Examiner:
    """Examines one model.

    Args:
        stream: runs the model.
        ready: for an evaluator as it was built, the one that measures this model: bound, and fitted where it fits.
        context: what evaluators know.
        resamples, seed: of the bootstrap.
        side: "base" or "tuned", for the listener.
    """

    stream: ModelStream
    ready: Callable[[Evaluator], Evaluator]
    context: EvaluationContext
    resamples: int
    seed: int
    side: str

    def examine(self, examination: Examination) -> Outcome:
        """Run the model over the examples as a stream; what is kept is sums, and judgements where asked for."""
        outcome = Outcome()
        for name, (built, members) in examination.passes().items():
            evaluators = [self.ready(evaluator) for evaluator in built]
            columns = frozenset().union(*(evaluator.columns for evaluator in evaluators))
            phase = f"evaluate {self.side}{examination.title}"
            stream = (
                self.stream.predictions(examination.split, phase, columns)
                if name == PREDICTIONS
                else self.stream.answers(examination.split, members, examination.options, f"{phase}: answers", columns)
            )
            self._measure(outcome, name, examination, evaluators, members, stream)
        outcome.gather()
        return outcome

    def _measure(
        self,
        outcome: Outcome,
        name: str,
        examination: Examination,
        evaluators: Sequence[Evaluator],
        members: np.ndarray,
        stream: Iterable[tuple[int, Prediction]],
    ) -> None:
        split, sliced = examination.split, examination.first.name in {evaluator.name for evaluator in evaluators}
        whole = self._accumulator(evaluators, split, members)
        columns = examination.slices if sliced else {}
        lean = [evaluators[0].lean()]
        all_slices = [self._accumulator(lean, split, members)] if columns else []
        parts = {
            column: [
                self._accumulator(lean, split, members[slicing.codes[members] == code])
                for code in range(len(slicing.values))
            ]
            for column, slicing in columns.items()
        }
        judging = [evaluator for evaluator in evaluators if examination.judged and judges(evaluator)]
        judgements = {evaluator.name: Judgements.blank(len(split)) for evaluator in judging}
        spool = Spool(len(split)) if judging and examination.shown else None
        for member, prediction in stream:
            # Duplicates share their weights: the interval counts what is distinct, not how often it stands there.
            index = member if split.groups is None else int(split.groups[member])
            for accumulator in (whole, *all_slices):
                accumulator.update(index, prediction)
            for column, slicing in columns.items():
                if (code := slicing.codes[member]) >= 0:
                    parts[column][code].update(index, prediction)
            for evaluator in judging:
                judgements[evaluator.name].put(member, evaluator.judge(prediction))
            if spool is not None:
                task = self.stream.task
                spool.put(member, task.readable(prediction) if isinstance(task, Shows) else dict(prediction))
        outcome.sums.parts[name] = whole
        outcome.slices |= parts
        outcome.sliced += all_slices
        outcome.judgements |= judgements
        outcome.judged_in |= dict.fromkeys(judgements, name)
        if spool is not None:
            outcome.spools[name] = spool

    def _accumulator(self, evaluators: Sequence[Evaluator], split: EncodedSplit, members: np.ndarray) -> Accumulator:
        distinct = None if split.groups is None else len(np.unique(split.groups[members]))
        return Accumulator(evaluators, self.context, self.resamples, self.seed, distinct=distinct, bound=True)
