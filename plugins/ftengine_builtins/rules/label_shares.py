"""Rules about a label that the model answers too often, because training has too much of it or weighs it too much."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import NormalDist

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import capitalized, counted, listed, number, percent, quoted
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.audits.split_shift import EXPLAINED
from ftengine_builtins.rules.classes import rarely_answered, trained_on
from ftengine_builtins.rules.fitting import falls_behind, seen_metric
from ftengine_builtins.rules.learning import is_weighted
from ftengine_builtins.rules.threshold import confusions, no_better_than_a_constant, threshold_of

TIMES, POINTS, CHANCE = 1.5, 0.15, 0.001
"""How many times a label's share of the measured rows its share of the training rows is, by how much it is larger, and
the p-value of the two-proportion test below which that is no chance."""

HEAVY = 5.0
"""How many times the least weight of a label another one's is, from which a model may answer that one alone."""


@dataclass(frozen=True)
class Answered:
    """A label of the measured split: numbers of examples with it, of examples answered with it, and of all."""

    label: str
    true: int
    given: int
    total: int

    @property
    def is_frequent(self) -> bool:
        """Whether it is given surely more often than it is true."""
        return share_within(self.given, self.total)[0] > share_within(self.true, self.total)[1]

    @property
    def excess(self) -> float:
        """The label's share of answers minus its share of examples."""
        return (self.given - self.true) / self.total


@dataclass(frozen=True)
class ShiftedLabel(Answered):
    """An over-represented label, with its number of training rows, and the number of all training rows."""

    trained: int
    rows: int


def shifted_label(run: RunRecords) -> ShiftedLabel | None:
    """Return the label that is far more frequent in training than in the measured split, and answered too often.

    None if there is none, if the model is good, or if the recipe balances labels. A label that the measured split lacks
    may have another name there, if that split has labels unknown to training.
    """
    labels, counts = run.trained.labels, trained_on(run)
    if labels is None or labels.kind != "single" or is_weighted(run):
        return None
    if not (no_better_than_a_constant(run) or falls_behind(run, seen_metric(run))):
        return None
    rows, every = sum(counts.values()), _answered(run)
    renamed = any(counts.get(answered.label, 0) == 0 for answered in every if answered.true)
    shifted = [
        ShiftedLabel(**asdict(answered), trained=counts[answered.label], rows=rows)
        for answered in every
        if (answered.true or not renamed)
        and answered.label in counts
        and answered.is_frequent
        and _is_larger(counts[answered.label], rows, answered.true, answered.total)
    ]
    return max(shifted, key=lambda label: label.excess, default=None)


class LabelShares(Rule):
    """Finds a label that is far more frequent in training than in the measured split, and answered too often."""

    name = "label-shares"
    order = 0

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        shifted = shifted_label(run)
        if shifted is None:
            return
        split, total = run.evaluation.split, shifted.total
        brief = "check whether training labels were assigned wrongly: "
        if not shifted.true:
            brief = f"check whether {quoted(shifted.label)} has another name in {split}, or was left out: "
        brief += f"{quoted(shifted.label)} is the label of {percent(shifted.trained / shifted.rows)} of the training "
        brief += f"rows and of {percent(shifted.true / total)} of the {split} rows, and the model answers it to "
        brief += f"{percent(shifted.given / total)}{_taken_from(run, shifted.label)}"
        text = f"{capitalized(brief)}. If the {split} split was balanced on purpose, set train.sampling to balanced."
        figures = asdict(shifted)
        yield Finding(kind="labels", level="alarm", text=text, brief=brief, explains=EXPLAINED, figures=figures)


class ClassWeights(Rule):
    """Finds `task.class_weights` with which the model answers the heaviest label too often, or hardly ever a light one.

    Weights that make up for a rare label are sound.
    """

    name = "class-weights"
    order = 0

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        class_weights, answered = run.recipe.task.get("class_weights"), {label.label: label for label in _answered(run)}
        if not isinstance(class_weights, dict) or not answered:
            return
        weights = {label: float(class_weights.get(label, 1.0)) for label in answered}
        heaviest, least = max(weights, key=lambda label: weights[label]), min(weights.values())
        if weights[heaviest] < HEAVY * least or _makes_up(weights, heaviest, trained_on(run)):
            return
        heavy, rare_answers = answered[heaviest], rarely_answered(run)
        light = {label: true for label, true in rare_answers.items() if HEAVY * weights[label] <= weights[heaviest]}
        too_often = heavy.is_frequent and heavy.excess >= POINTS
        if not too_often and (heaviest in rare_answers or share_within(sum(light.values()), heavy.total)[0] < POINTS):
            return
        times = number(weights[heaviest] / least, 0)
        brief = f"take task.class_weights out: {quoted(heaviest)} has up to {times} times the weight of other labels "
        brief += (
            f"and is answered to {percent(heavy.given / heavy.total)} of {counted(heavy.total, 'example')}, the truth "
        )
        brief += f"of {percent(heavy.true / heavy.total)}"
        if not too_often:
            brief += f"; hardly ever answered: {listed([quoted(label) for label in list(light)[:3]])}"
        figures = {**asdict(heavy), "weights": weights, "seldom": list(light)}
        text = f"{capitalized(brief)}."
        yield Finding(kind="classes", level="alarm", text=text, brief=brief, explains=EXPLAINED, figures=figures)


def _taken_from(run: RunRecords, label: str) -> str:
    """Return ", mostly to “business”" for the labels whose examples a label is answered to instead; "" if unknown."""
    for names, counts in confusions(run):
        if label in names:
            taken = [(int(counts[i, names.index(label)]), name) for i, name in enumerate(names) if name != label]
            most = [quoted(name) for count, name in sorted(taken, reverse=True)[:2] if count]
            return f", mostly to {listed(most)}" if most else ""
    return ""


def _answered(run: RunRecords) -> list[Answered]:
    threshold = threshold_of(run)
    if threshold is None or not threshold.baseline.total:
        return []
    return [Answered(*counts, threshold.baseline.total) for counts in threshold.baseline.classes]


def _is_larger(count: int, rows: int, other: int, total: int) -> bool:
    """Return whether a share of training rows is far and surely above one of measured rows."""
    trained, held = count / rows, other / total
    pooled = (count + other) / (rows + total)
    error = math.sqrt(pooled * (1 - pooled) * (1 / rows + 1 / total))
    surely = trained - held > NormalDist().inv_cdf(1 - CHANCE / 2) * error
    return surely and trained >= TIMES * held and trained - held >= POINTS


def _makes_up(weights: dict[str, float], heaviest: str, counts: dict[str, int]) -> bool:
    """Return whether the heaviest label's weighted share of training is no larger than another label's."""
    weighted = {label: weight * counts.get(label, 0) for label, weight in weights.items()}
    return bool(counts) and weighted[heaviest] <= max(weighted[label] for label in weights if label != heaviest)
