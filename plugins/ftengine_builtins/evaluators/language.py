"""Figures of language models."""

import numpy as np

from ftengine.api import ExampleScores
from ftengine_builtins.evaluators.base import WeightedEvaluator, lower
from ftengine_builtins.evaluators.weighted import ratio, totals


class Perplexity(WeightedEvaluator):
    """Loss per token in nats, and perplexity.

    Both are means over tokens, not over examples: summed negative log-likelihood / predicted tokens.
    """

    name = "perplexity"
    reads = frozenset({"loss", "tokens"})
    metrics = {  # noqa: RUF012
        "loss": lower("loss", "Negative log-likelihood per target token, in nats."),
        "perplexity": lower(
            "perplexity",
            "e to the power of the loss: among how many equally likely tokens the model is undecided.",
            tested_as="loss",
        ),
    }

    def score_resamples(self, rows, weights):
        loss = ratio(*totals(weights, rows["loss"], rows["tokens"]).T)
        with np.errstate(over="ignore"):
            return {"loss": loss, "perplexity": np.exp(loss)}

    def example_weights(self, rows):
        tokens = np.asarray(rows["tokens"], dtype=np.float64)
        return {"loss": tokens, "perplexity": tokens}

    def score_examples(self, rows):
        """Score the negative loss per token; nan if no token is predicted."""
        score = -ratio(np.asarray(rows["loss"]), np.asarray(rows["tokens"]))
        return ExampleScores(score, np.full(len(score), np.nan))
