"""Figures of preferences: how often the chosen answer is preferred, and how both answers' likelihood changed."""

from __future__ import annotations

import numpy as np

from ftengine.api import Baseline, ExampleScores, Line, LineChart, Metric, Table
from ftengine.text import interval, number
from ftengine_builtins.evaluators.base import WeightedEvaluator, higher, share
from ftengine_builtins.evaluators.weighted import means

SHOWN = 21
"""Points of the chart of margins."""


class Preferences(WeightedEvaluator):
    """Accuracy and margin of pairs, log-probabilities of both answers, and the accuracy of preferring by length.

    A pair with margin 0 counts half, as does every pair of a base that is its own reference.
    """

    name = "preferences"
    reads = frozenset({"chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens", "margin"})
    metrics = {  # noqa: RUF012
        "preference_accuracy": share(
            "preference accuracy",
            "Share of the pairs whose chosen answer is preferred: its likelihood gained more on the reference's than "
            "the rejected one's; of losses without reference: it is likelier. 0.5 is chance.",
        ),
        "ranking_accuracy": share(
            "ranking accuracy", "Share of the pairs whose chosen answer is likelier as a whole than the rejected one."
        ),
        "margin": higher("margin", "Mean of what the loss pulls apart, as β·Δ of DPO.", at_zero="nothing is preferred"),
        "chosen_logp": Metric(
            "log-probability of chosen answers", meaning="Mean over pairs, summed over the answer's tokens, in nats."
        ),
        "rejected_logp": Metric(
            "log-probability of rejected answers", meaning="Mean over pairs, summed over the answer's tokens, in nats."
        ),
    }

    def score_resamples(self, rows, weights):
        columns = [
            _won(rows["margin"]),
            _won(np.asarray(rows["chosen_logp"]) - np.asarray(rows["rejected_logp"])),
            *(np.asarray(rows[name], dtype=np.float64) for name in ("margin", "chosen_logp", "rejected_logp")),
        ]
        return dict(zip(self.metrics, means(weights, *columns).T, strict=True))

    def score_examples(self, rows):
        """Score the margin; a pair is right if its chosen answer is preferred, and undecided at a margin of 0."""
        margin = np.asarray(rows["margin"], dtype=np.float64)
        return ExampleScores(margin, np.where(margin == 0, np.nan, margin > 0))

    def baseline_resamples(self, rows, weights):
        return {"preference_accuracy": means(weights, _by_length(rows)[1])[:, 0]}

    def details(self, rows, estimate):
        """Yield the accuracy of preferring by length, the lengths of both answers with intervals, and the margins."""
        name, won = _by_length(rows)
        if not len(won):
            return
        reached = float(won.mean())
        yield Baseline(
            answer=f"the {name} one",
            way=f"preferring the {name} answer",
            share=reached,
            figures={"preference_accuracy": reached},
            total=len(won),
            unit="pair",
        ).fact()
        chosen, rejected = (np.asarray(rows[f"{side}_tokens"], dtype=np.float64) for side in ("chosen", "rejected"))
        estimates = estimate(lambda weights: means(weights, chosen, rejected, chosen - rejected))
        yield Table(
            title="Lengths of answers",
            columns=("answer", "tokens", "interval"),
            rows=tuple(
                (of, round(estimated.value, 2), interval(estimated) or "")
                for of, estimated in zip(("chosen", "rejected", "difference"), estimates, strict=True)
            ),
            caption=f"Means over pairs. Preferring the {name} answer is right in {number(100 * reached, 1)} % of them.",
        )
        margins = np.sort(np.asarray(rows["margin"], dtype=np.float64))
        if margins[0] < margins[-1]:
            at = np.linspace(0, 1, SHOWN)
            points = tuple((float(x), float(y)) for x, y in zip(np.quantile(margins, at), at, strict=True))
            lines = (Line(name="", points=points),)
            yield LineChart(title="Margins", x_label="margin", y_label="share of pairs below", lines=lines)


class Rewards(Preferences):
    """How often, and by how much, a reward model scores the chosen answer higher, and the accuracy of length.

    A pair with equal scores counts half.
    """

    name = "rewards"
    reads = frozenset({"chosen_reward", "rejected_reward", "chosen_tokens", "rejected_tokens", "margin"})
    metrics = {  # noqa: RUF012
        "preference_accuracy": share(
            "preference accuracy", "Share of the pairs whose chosen answer has the higher score; 0.5 is chance."
        ),
        "margin": higher("margin", "Mean difference of the two scores.", at_zero="nothing is preferred"),
        "chosen_reward": Metric("score of chosen answers", meaning="Mean over pairs."),
        "rejected_reward": Metric("score of rejected answers", meaning="Mean over pairs."),
    }

    def score_resamples(self, rows, weights):
        columns = (np.asarray(rows[name], dtype=np.float64) for name in list(self.metrics)[1:])
        return dict(zip(self.metrics, means(weights, _won(rows["margin"]), *columns).T, strict=True))


def _won(differences: np.ndarray) -> np.ndarray:
    """Return (n,) 1 for a difference above 0, 0.5 for 0, else 0."""
    return (np.sign(np.asarray(differences, dtype=np.float64)) + 1) / 2


def _by_length(rows) -> tuple[str, np.ndarray]:
    """Return which answer, "longer" or "shorter", is more often chosen, and (n,) for which pairs."""
    longer = _won(np.asarray(rows["chosen_tokens"]) - np.asarray(rows["rejected_tokens"]))
    return ("longer", longer) if not len(longer) or longer.mean() >= 0.5 else ("shorter", 1 - longer)
