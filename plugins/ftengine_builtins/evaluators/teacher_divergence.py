"""How far a model is from its teacher."""

import numpy as np
from pydantic import Field

from ftengine import api
from ftengine.api import ExampleScores
from ftengine_builtins.evaluators.base import WeightedEvaluator, lower
from ftengine_builtins.evaluators.weighted import ratio, totals


class TeacherDivergence(WeightedEvaluator):
    """KL divergence of the model from the teacher of task distillation, per token of the model's own answers.

    It is over the whole vocabulary at each token, along answers to held-out prompts that are drawn as in training.
    """

    name = "teacher-divergence"

    class Config(api.Config):
        max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens; task distillation gives its own")
        temperature: float = Field(1.0, ge=0, description="at which answers are drawn; 0 takes the likeliest token")

    reads = frozenset({"teacher_kl", "teacher_tokens"})
    metrics = {  # noqa: RUF012
        "teacher_kl": lower(
            "KL from the teacher",
            "Mean over tokens of the model's own answers of KL(model‖teacher), in nats.",
            primary=True,
        )
    }

    def __init__(self, config=None):
        super().__init__(config)
        drawn = {"temperature": self.config.temperature, "seed": 0} if self.config.temperature else {}
        self.generation = {"max_new_tokens": self.config.max_new_tokens, **drawn}

    def score_resamples(self, rows, weights):
        return {"teacher_kl": ratio(*totals(weights, rows["teacher_kl"], rows["teacher_tokens"]).T)}

    def example_weights(self, rows):
        return {"teacher_kl": np.asarray(rows["teacher_tokens"], dtype=np.float64)}

    def score_examples(self, rows):
        """Score less the divergence per token."""
        score = -ratio(np.asarray(rows["teacher_kl"]), np.asarray(rows["teacher_tokens"]))
        return ExampleScores(score, np.full(len(score), np.nan))
