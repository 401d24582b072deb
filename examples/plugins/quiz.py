"""An evaluator that asks the models questions of its own, as a benchmark does.

`benchmarks` names them and gives an evaluator for the answers to each; `ask_models` puts them to the base and to the
tuned model, in a run and in `ftengine evaluate RUN`. Examples with an equal "group" are resampled together. The figures
stand in evaluation.json among `probes`, with kind "benchmark", and in the report.
"""

import numpy as np

from ftengine.api import Evaluator, Metric, ModelEvaluator
from ftengine.errors import RecipeError

QUESTIONS = [f"quiz number {i}" for i in range(12)]


class Quiz(ModelEvaluator):
    """Ask classifiers about texts of its own, which have the first two labels in turn."""

    name = "quiz"

    def score(self, rows, weights):
        return {}

    def benchmarks(self, task):
        if task.head != "sequence-classification":
            raise RecipeError(f"evaluator quiz asks classifiers of texts, not models of task {task.name}.")
        self.task = task
        return {"texts": Right()}

    def ask_models(self, loaded):
        answers = self.task.infer(loaded, [{"text": text} for text in QUESTIONS])
        return {"texts": [{"right": float(a["label"] == loaded.labels.names[i % 2])} for i, a in enumerate(answers)]}


class Right(Evaluator):
    """The share of right answers."""

    name = "right-answers"
    reads = frozenset({"right"})
    metrics = {"quiz": Metric("right answers", higher_is_better=True, proportion=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {"quiz": float(np.average(rows["right"], weights=weights)) if weights.any() else float("nan")}
