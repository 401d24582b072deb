"""Figures of language models."""

import numpy as np

from ftengine.api import Evaluator, Judgement
from ftengine_builtins.evaluators.ratios import ratio


class Perplexity(Evaluator):
    """Loss per token in nats, and perplexity.

    Both are means over tokens, not over examples: summed negative log-likelihood / predicted tokens.
    """

    name = "perplexity"
    reads = frozenset({"loss", "tokens"})
    higher_is_better = {"loss": False, "perplexity": False}  # noqa: RUF012

    def statistics(self, prediction):
        """Return the example's summed negative log-likelihood, its number of predicted tokens, and that squared."""
        return prediction["loss"], prediction["tokens"], prediction["tokens"] ** 2

    def judge(self, prediction):
        """Score less the loss per token; None where nothing is predicted."""
        return Judgement(-prediction["loss"] / prediction["tokens"]) if prediction["tokens"] else None

    def metrics(self, sums):
        loss = ratio(sums[..., 0], sums[..., 1])
        return {"loss": loss, "perplexity": np.exp(loss)}

    def sizes(self, sums):
        size = float(ratio(sums[1] ** 2, sums[2]))
        return {"loss": size, "perplexity": size}
