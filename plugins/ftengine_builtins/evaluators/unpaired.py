"""Figures of unpaired preferences: whether desirable answers gained more than others."""

from __future__ import annotations

import numpy as np

from ftengine.api import Baseline, ExampleScores, Metric, Table
from ftengine.text import interval
from ftengine_builtins.evaluators.base import WeightedEvaluator, higher, share
from ftengine_builtins.evaluators.classification import roc_auc
from ftengine_builtins.evaluators.weighted import means


class UnpairedPreferences(WeightedEvaluator):
    """How well implied rewards separate desirable answers from others, and how both changed.

    An answer's implied reward is β times the difference of its log-probability from the reference's; 0 for a base that
    is its own reference.
    """

    name = "unpaired-preferences"
    reads = frozenset({"logp", "tokens", "desirable", "reward"})
    metrics = {  # noqa: RUF012
        "reward_auc": share(
            "AUC of rewards",
            "How often a desirable answer's implied reward is above that of one that is not, equal ones by half; 0.5 "
            "is chance.",
        ),
        "reward_difference": higher(
            "difference of rewards",
            "Mean implied reward of desirable answers minus that of the others.",
            at_zero="nothing is preferred",
        ),
        "chosen_logp": Metric(
            "log-probability of desirable answers",
            meaning="Mean over answers, summed over an answer's tokens, in nats.",
        ),
        "rejected_logp": Metric(
            "log-probability of undesirable answers",
            meaning="Mean over answers, summed over an answer's tokens, in nats.",
        ),
    }

    def score_resamples(self, rows, weights):
        good = _desirable(rows)
        rewards, logps = (_of_both(rows[name], good) for name in ("reward", "logp"))
        gained, logp = means(weights, *rewards), means(weights, *logps)
        return {
            "reward_auc": roc_auc(good, np.asarray(rows["reward"], dtype=np.float64), weights),
            "reward_difference": gained[:, 0] - gained[:, 1],
            "chosen_logp": logp[:, 0],
            "rejected_logp": logp[:, 1],
        }

    def example_weights(self, rows):
        good = _desirable(rows)
        return {"chosen_logp": good.astype(float), "rejected_logp": (~good).astype(float)}

    def trials(self, rows):
        """Return the number of trials equivalent to the area (`Classification.trials`)."""
        good = _desirable(rows)
        return {"reward_auc": 4.0 * min(good.sum(), (~good).sum())}

    def score_examples(self, rows):
        """Score the reward, negated for undesirable answers; a score of 0 is neither right nor wrong."""
        score = np.asarray(rows["reward"], dtype=np.float64) * np.where(_desirable(rows), 1, -1)
        return ExampleScores(score, np.where(score == 0, np.nan, score > 0))

    def baseline_resamples(self, rows, weights):
        area, sign = _by_length(rows)
        if area is None:
            return {}
        return {"reward_auc": roc_auc(_desirable(rows), sign * _tokens(rows), weights)}

    def details(self, rows, estimate):
        """Yield the accuracy of ranking by length, and the lengths of both kinds with intervals."""
        good, tokens = _desirable(rows), _tokens(rows)
        area, sign = _by_length(rows)
        if area is None:
            return
        name = "longer" if sign > 0 else "shorter"
        figures = {"reward_auc": area}
        way = f"preferring {name} answers"
        yield Baseline(
            answer=f"the {name} one", way=way, share=area, figures=figures, total=len(good), unit="answer"
        ).fact()
        both = _of_both(tokens, good)
        estimates = estimate(lambda weights: _with_difference(means(weights, *both)))
        yield Table(
            title="Lengths of answers",
            columns=("answer", "tokens", "interval"),
            rows=tuple(
                (of, round(estimated.value, 2), interval(estimated) or "")
                for of, estimated in zip(("desirable", "undesirable", "difference"), estimates, strict=True)
            ),
            caption=f"Means over answers. Ranking {name} answers higher has an AUC of {area:.3f}.",
        )


def _desirable(rows) -> np.ndarray:
    return np.asarray(rows["desirable"]).astype(bool)


def _tokens(rows) -> np.ndarray:
    return np.asarray(rows["tokens"], dtype=np.float64)


def _of_both(values, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) values of desirable answers, and of the others; nan elsewhere."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(good, values, np.nan), np.where(good, np.nan, values)


def _with_difference(both: np.ndarray) -> np.ndarray:
    return np.column_stack([both, both[:, 0] - both[:, 1]])


def _by_length(rows) -> tuple[float | None, int]:
    """Return the AUC of ranking by length, and 1 if longer is better, else -1; None without pairs."""
    good, tokens = _desirable(rows), _tokens(rows)
    if good.all() or not good.any():
        return None, 1
    area = float(roc_auc(good, tokens, np.ones((1, len(tokens))))[0])
    return (area, 1) if area >= 0.5 else (1 - area, -1)
