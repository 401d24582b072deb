"""All that is measured of a run's two models, and the order in which it is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ftengine.api import EvaluationContext, Evaluator, Prediction
from ftengine.data.encoding import EncodedSplit
from ftengine.evaluation.examination import Examination, Examiner, Outcome
from ftengine.evaluation.stream import ModelStream


@dataclass(frozen=True)
class Probe:
    """A further look at both models.

    Args:
        kind: "robustness", "forgetting", "memorisation" or "refusal".
        name: of the augmenter or the evaluator.
        data: where the examples are from.
        examination: the examples, and what is measured on them.
        contrast: other examples that these are set against, measured in the same way.
    """

    kind: str
    name: str
    data: str
    examination: Examination
    contrast: Examination | None = None


@dataclass(frozen=True)
class Measurement:
    """What is measured, of base and tuned model alike.

    Args:
        split: the name of what is held out, or of the file in its place; None where nothing is.
        held_out: the examples that figures are made on.
        training: a sample of what the model is trained on.
        probes: further looks.
        validation: what evaluators that fit learn from; None where there is nothing left.
        small_slice: examples below which a slice is called small.
    """

    split: str | None
    held_out: Examination | None = None
    training: Examination | None = None
    probes: Sequence[Probe] = ()
    validation: EncodedSplit | None = None
    small_slice: int = 30

    @property
    def general(self) -> EncodedSplit | None:
        """The general examples that forgetting is measured on."""
        return next((probe.examination.split for probe in self.probes if probe.kind == "forgetting"), None)

    def encoded(self) -> list[EncodedSplit]:
        """Return the examples that a model reads as batches; those that are only answered are cut to fit."""
        probes = [one for probe in self.probes for one in (probe.examination, probe.contrast)]
        return [one.split for one in (self.held_out, self.training, *probes) if one is not None and one.reading]


@dataclass
class Measured:
    """What one model came to, in the order of the measurement."""

    held_out: Outcome | None = None
    training: Outcome | None = None
    probes: list[tuple[Outcome, Outcome | None]] = field(default_factory=list)


def measure(stream: ModelStream, measurement: Measurement, *, resamples: int, seed: int, side: str) -> Measured:
    """Measure one model.

    Args:
        stream: runs the model.
        measurement: what is measured; its evaluators stay as they are, each model has some of its own, built anew.
        resamples, seed: of the bootstrap.
        side: "base" or "tuned".
    """
    context = EvaluationContext(stream.task.name, stream.task.labels)
    copies: dict[int, Evaluator] = {}

    def ready(evaluator: Evaluator) -> Evaluator:
        if id(evaluator) not in copies:
            copies[id(evaluator)] = _fitted(evaluator, context, stream, measurement.validation, side)
        return copies[id(evaluator)]

    examiner = Examiner(stream, ready, context, resamples, seed, side)
    measured = Measured()
    if measurement.held_out is not None:
        measured.held_out = examiner.examine(measurement.held_out)
    if measurement.training is not None:
        measured.training = examiner.examine(measurement.training)
    for probe in measurement.probes:
        contrast = None if probe.contrast is None else examiner.examine(probe.contrast)
        measured.probes.append((examiner.examine(probe.examination), contrast))
    return measured


def _fitted(
    evaluator: Evaluator, context: EvaluationContext, stream: ModelStream, validation: EncodedSplit | None, side: str
) -> Evaluator:
    copy = type(evaluator)(evaluator.config)
    copy.bind(context)
    if copy.fits:
        copy.fit(None if validation is None else _of_validation(stream, validation, copy, side))
    return copy


def _of_validation(
    stream: ModelStream, validation: EncodedSplit, evaluator: Evaluator, side: str
) -> Iterator[Prediction]:
    """Yield the model's predictions on validation; all of them in every process, so that all fit the same."""
    phase = f"fit {evaluator.name} to {side}"
    return (prediction for _, prediction in stream.predictions(validation, phase, evaluator.columns, whole=True))
