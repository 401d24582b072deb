"""How far a tuned model moved: the distance from its reference, and the length of its answers."""

import numpy as np
from pydantic import Field

from ftengine import api
from ftengine.api import Metric
from ftengine_builtins.evaluators.base import WeightedEvaluator
from ftengine_builtins.evaluators.weighted import means


class Divergence(WeightedEvaluator):
    """Distance of log-probabilities from those of the reference, per token of the data's answers.

    It is estimated on the data's answers, preferred and rejected. KL divergence, in contrast, is a mean over the
    model's own answers (`ftengine evaluate RUN --own-answers N`).
    """

    name = "divergence"
    reads = frozenset({"divergence"})
    metrics = {  # noqa: RUF012
        "divergence": Metric(
            "divergence from the reference, on the data",
            meaning="Mean over the data's answers of |log p − log p of the reference| per token, in nats; not KL, "
            "which is taken over the model's own answers.",
            at_zero="nothing has moved",
        )
    }

    def score_resamples(self, rows, weights):
        return {"divergence": means(weights, rows["divergence"])[:, 0]}


class AnswerLength(WeightedEvaluator):
    """Length of the model's own answers: words between white space, and characters."""

    name = "answer-length"

    class Config(api.Config):
        max_new_tokens: int = Field(256, ge=1, description="longest answer in tokens; longer ones are cut")

    reads = frozenset({"completion"})
    metrics = {  # noqa: RUF012
        "answer_words": Metric("words of an answer", meaning="Mean over the model's own answers."),
        "answer_characters": Metric("characters of an answer", meaning="Mean over the model's own answers."),
    }

    def __init__(self, config=None):
        super().__init__(config)
        self.generation = {"max_new_tokens": self.config.max_new_tokens}

    def keep(self, prediction):
        """Return how long the answer is."""
        answer = prediction["completion"]
        return {"answer_words": float(len(answer.split())), "answer_characters": float(len(answer))}

    def score_resamples(self, rows, weights):
        return dict(
            zip(self.metrics, means(weights, *(np.asarray(rows[name]) for name in self.metrics)).T, strict=True)
        )
