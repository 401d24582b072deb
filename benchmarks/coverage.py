"""How often the 95 % intervals hold the truth, and how often a detectable difference is found, by simulation.

    python benchmarks/coverage.py [--runs 1000] [--examples 50 200 1000]

Each world draws data sets whose true figures are known. Language: lengths are lognormal (σ = 1: the longest of
20 examples is some 6 times the median), the loss of an example depends on its length and on how hard it is for
both models; tuned is 8 % better. Classes: five of unequal frequency; base and tuned are right on 90 % each,
together more often than chance. Slices: four, of which one is served worse. Scores: a class whose log-odds are
normal, and probabilities that are 0.1 too high. Sure: a model that is hardly ever wrong. The table
is printed as Markdown.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from ftengine.api import Evaluator, Labels, Rows
from ftengine.evaluation.differences import compare, gap_between
from ftengine.evaluation.figures import Figure, measure
from ftengine.evaluation.slices import Side, slice_reports
from ftengine.evaluation.weights import Weights
from ftengine_builtins.evaluators.calibration import Calibration
from ftengine_builtins.evaluators.classification import Classification
from ftengine_builtins.evaluators.language import Perplexity

FREQUENCIES = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
SHARES = np.array([0.4, 0.3, 0.2, 0.1])
"""Of the four slices."""
RIGHT = np.array([0.9, 0.9, 0.9, 0.75])
"""Accuracy in each slice."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Held:
    """An interval of one simulated set: what it is of, its ends, and the truth."""

    figure: str
    low: float | None
    high: float | None
    truth: float

    @property
    def holds(self) -> bool:
        return self.low is not None and self.high is not None and self.low <= self.truth <= self.high


def figures(evaluator: Evaluator, rows: Rows, weights: Weights, names: str = "abcde") -> dict[str, Figure]:
    """Measure rows; where labels are learnt, they have the names given."""
    evaluator.set_labels("a-task", Labels("single", tuple(names)))
    return measure(evaluator, rows, weights)


def language(n: int, seed: int, resamples: int = RESAMPLES) -> Iterator[Held]:
    """Mean loss per token and perplexity of base, and tuned minus base."""
    rng = np.random.default_rng([n, seed])
    size, hardness = rng.normal(size=(2, n))
    tokens = np.exp(3 + size)
    base = np.exp(0.9 - 0.1 * size + 0.4 * hardness)
    tuned = base * np.exp(rng.normal(-0.1, 0.2, n))
    weights = Weights(np.arange(n), seed, resamples)
    both = [figures(Perplexity(), {"loss": loss * tokens, "tokens": tokens}, weights) for loss in (base, tuned)]
    # E[loss · tokens] / E[tokens] of the lognormals above.
    loss = math.exp(0.9 + 0.4**2 / 2 + (0.9**2 - 1) / 2)
    factor = math.exp(-0.1 + 0.2**2 / 2)
    truth = {"loss": loss, "perplexity": math.exp(loss)}
    gap = {"loss": loss * (factor - 1), "perplexity": math.exp(loss * factor) - math.exp(loss)}
    yield from _held(both[0], both[1], truth, gap)


def classes(n: int, seed: int, resamples: int = RESAMPLES) -> Iterator[Held]:
    """Accuracy and macro F1 of base, and tuned minus base, which are equally good."""
    rng = np.random.default_rng([n, seed])
    label = rng.choice(5, n, p=FREQUENCIES)
    shared, alone = rng.random((2, n))
    together = rng.random(n) < 0.5
    weights, both = Weights(np.arange(n), seed, resamples), []
    luck_of_both = shared, np.where(together, shared, alone)
    for luck, other in zip(luck_of_both, rng.integers(1, 5, (2, n)), strict=True):
        guess = np.where(luck < 0.9, label, (label + other) % 5)
        both.append(figures(Classification(), {"label": label, "predicted": guess}, weights))
    predicted = 0.9 * FREQUENCIES + 0.1 * (1 - FREQUENCIES) / 4
    f1 = (2 * 0.9 * FREQUENCIES / (FREQUENCIES + predicted)).mean()
    yield from _held(both[0], both[1], {"accuracy": 0.9, "macro_f1": f1}, {"accuracy": 0.0, "macro_f1": 0.0})


def _held(
    base: dict[str, Figure], tuned: dict[str, Figure], truth: dict[str, float], gap: dict[str, float]
) -> Iterator[Held]:
    differences = compare(base, tuned)
    for name, value in truth.items():
        yield Held(name, *base[name].interval, value)
        yield Held(f"{name} difference", differences[name].low, differences[name].high, gap[name])


def slices(n: int, seed: int, resamples: int = RESAMPLES) -> Iterator[Held]:
    """The gap of a slice that was named beforehand, and of the one that looks worst, in accuracy and in loss."""
    rng = np.random.default_rng([n, seed])
    member = rng.choice(4, n, p=SHARES)
    right = rng.random(n) < RIGHT[member]
    label = rng.choice(5, n, p=FREQUENCIES)
    said = {"label": label, "predicted": np.where(right, label, (label + 1) % 5)}
    truth = [RIGHT[k] - np.delete(SHARES * RIGHT, k).sum() / (1 - SHARES[k]) for k in range(4)]
    weights = Weights(np.arange(n), seed, resamples)
    yield from _gaps("accuracy", Classification(), said, member, weights, truth)
    tokens = np.exp(3 + rng.normal(size=n) / 2)
    level = np.array([2.0, 2.0, 2.0, 2.4])
    loss = level[member] * np.exp(rng.normal(-(0.4**2) / 2, 0.4, n))
    truth = [level[k] - np.delete(SHARES * level, k).sum() / (1 - SHARES[k]) for k in range(4)]
    yield from _gaps("loss", Perplexity(), {"loss": loss * tokens, "tokens": tokens}, member, weights, truth)


def _gaps(
    metric: str, evaluator: Evaluator, rows: Rows, member: np.ndarray, weights: Weights, truth: list[float]
) -> Iterator[Held]:
    parts = []
    for mask in (member != 3, member == 3):
        part = {name: column[mask] for name, column in rows.items()}
        parts.append(figures(evaluator, part, weights.under(mask)))
    gap = gap_between(parts[0].get(metric), parts[1].get(metric))
    low, high = (None, None) if gap is None else gap.interval()
    yield Held(f"{metric} gap of a slice", low, high, truth[3])
    side = Side(rows)
    columns = {"member": member.astype(str)}
    report = slice_reports(columns, evaluator, side, side, weights, np.arange(len(member)), small=2)["member"]
    if report.worst is not None and report.gap is not None:
        yield Held(f"{metric} gap of the worst slice", report.gap.low, report.gap.high, truth[int(report.worst)])


def scores(n: int, seed: int, resamples: int = RESAMPLES) -> Iterator[Held]:
    """The area under the ROC curve, and calibration figures of a model that is 0.1 too sure."""
    rng = np.random.default_rng([n, seed])
    weights = Weights(np.arange(n), seed, resamples)
    label = rng.integers(0, 2, n)
    odds = rng.normal(np.where(label == 1, 0.75, -0.75), 1.0)
    p = 1 / (1 + np.exp(-1.5 * odds))
    yield Held("roc_auc", *_ranked(label, p, weights).interval, float(ndtr(1.5 / math.sqrt(2))))
    sure = rng.uniform(0.6, 1.0, n)
    right = rng.random(n) < sure - 0.1
    guess = rng.integers(0, 2, n)
    logits = np.log(sure / (1 - sure))[:, None] * (guess[:, None] == [0, 1])
    said = {"label": np.where(right, guess, 1 - guess), "logits": logits}
    error = figures(Calibration(), said, weights, "ny")["overconfidence"]
    yield Held("overconfidence", *error.interval, 0.1)


def _ranked(label: np.ndarray, p: np.ndarray, weights: Weights) -> Figure:
    said = {"label": label, "predicted": (p > 0.5).astype(int), "scores": np.column_stack([1 - p, p])}
    return figures(Classification(), said, weights, "ny")["roc_auc"]


def sure(n: int, seed: int, resamples: int = RESAMPLES) -> Iterator[Held]:
    """The same figures of a model that is hardly ever wrong: area 0.99; 98 % right, and sure of 99.5 %."""
    rng = np.random.default_rng([n, seed])
    weights = Weights(np.arange(n), seed, resamples)
    label = rng.integers(0, 2, n)
    apart = math.sqrt(2) * float(ndtri(0.99))
    p = 1 / (1 + np.exp(-apart * (rng.normal(size=n) + apart * (label - 0.5))))
    yield Held("roc_auc of 0.99", *_ranked(label, p, weights).interval, 0.99)
    confidence = 0.99 + 0.01 * rng.random(n)
    right = rng.random(n) < 0.98
    logits = np.log(confidence / (1 - confidence))[:, None] * [1, 0]
    error = figures(Calibration(), {"label": (~right).astype(int), "logits": logits}, weights, "ny")["overconfidence"]
    yield Held("overconfidence at 98 %", *error.interval, 0.015)


WORLDS: dict[str, Callable[..., Iterator[Held]]] = {
    "language": language,
    "classes": classes,
    "slices": slices,
    "scores": scores,
    "sure": sure,
}


def coverage(
    world: Callable[..., Iterator[Held]], n: int, runs: int, resamples: int = RESAMPLES
) -> dict[str, tuple[int, int]]:
    """Return {figure: (sets whose interval holds the truth, sets)} over data sets drawn with seeds 0, 1, ….

    A set that is too small for an interval does not count.
    """
    found: dict[str, tuple[int, int]] = {}
    for seed in range(runs):
        for held in world(n, seed, resamples):
            if held.low is None:
                continue
            right, all_sets = found.get(held.figure, (0, 0))
            found[held.figure] = right + bool(held.holds), all_sets + 1
    return found


def power(n: int, runs: int, resamples: int = RESAMPLES) -> dict[str, tuple[int, int]]:
    """Return {figure: (sets that found the difference, sets)} where the true difference is the detectable one.

    What is detectable is the median of `Difference.detectable` over 100 sets without a difference.
    """
    found = {}
    for name, draw in (("loss", _shifted_losses), ("accuracy", _shifted_classes)):
        blank = [compare(*draw(n, 10**6 + seed, 0.0, resamples))[name].detectable for seed in range(100)]
        shift = float(np.median([value for value in blank if value is not None]))
        verdicts = [compare(*draw(n, seed, shift, resamples))[name].better for seed in range(runs)]
        found[f"{name} ({shift:.3g})"] = sum(better is True for better in verdicts), runs
    return found


def _shifted_losses(n: int, seed: int, shift: float, resamples: int) -> tuple[dict[str, Figure], dict[str, Figure]]:
    """Two models whose losses of an example differ by a normal number around -shift."""
    rng = np.random.default_rng([n, seed])
    base = np.exp(rng.normal(0.9, 0.4, n))
    tuned = base + rng.normal(-shift, 0.3, n)
    weights = Weights(np.arange(n), seed, resamples)
    before, after = (figures(Perplexity(), {"loss": x, "tokens": np.ones(n)}, weights) for x in (base, tuned))
    return before, after


def _shifted_classes(n: int, seed: int, shift: float, resamples: int) -> tuple[dict[str, Figure], dict[str, Figure]]:
    """Two models that disagree on a fifth of the examples; tuned is right more often by `shift`."""
    rng = np.random.default_rng([n, seed])
    luck = rng.random(n)
    base = (luck < 0.7) | ((luck >= 0.8 + shift / 2) & (luck < 0.9))
    tuned = luck < 0.8 + shift / 2
    weights, label = Weights(np.arange(n), seed, resamples), np.zeros(n, dtype=int)
    said = ({"label": label, "predicted": np.where(right, 0, 1)} for right in (base, tuned))
    before, after = (figures(Classification(), rows, weights) for rows in said)
    return before, after


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="simulated sets of each size")
    parser.add_argument("--examples", type=int, nargs="+", default=[50, 200, 1000], help="examples in a set")
    parser.add_argument("--worlds", nargs="+", default=[*WORLDS, "power"], choices=[*WORLDS, "power"])
    arguments = parser.parse_args()
    table: dict[str, list[str]] = {}
    for column, n in enumerate(arguments.examples):
        for name in arguments.worlds:
            counts = power(n, arguments.runs) if name == "power" else coverage(WORLDS[name], n, arguments.runs)
            for figure, (right, all_sets) in counts.items():
                label = f"power: {figure.split(' ')[0]}" if name == "power" else figure
                cells = table.setdefault(label, ["–"] * len(arguments.examples))
                cells[column] = f"{right / all_sets:.3f}"
            print(f"{name}, {n} examples: {counts}", flush=True)
    print(f"\n| figure | {' | '.join(f'n = {n:,}' for n in arguments.examples)} |")
    print(f"|---|{'---|' * len(arguments.examples)}")
    for figure, cells in table.items():
        print(f"| {figure} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
