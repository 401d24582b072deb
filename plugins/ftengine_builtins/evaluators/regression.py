"""Figures of predicted numbers."""

import numpy as np

from ftengine.api import Evaluator, Judgement
from ftengine.errors import RecipeError


class Regression(Evaluator):
    """Mean squared and absolute error, R² and Pearson's correlation.

    With several outputs each figure is the mean over outputs. R² is undefined where the targets do not vary,
    the correlation where targets or values do not.
    """

    name = "regression"
    reads = frozenset({"target", "value"})
    higher_is_better = {"mse": False, "mae": False, "r2": True, "pearson": True}  # noqa: RUF012
    parts = "outputs"
    per_model = frozenset({"pearson"})  # values of several models may be shifted against each other

    def bind(self, context):
        labels = context.labels
        if labels is None or labels.kind != "regression":
            raise RecipeError(
                f"evaluator 'regression' needs numbers to predict, and task {context.task!r} has "
                f"{'no labels' if labels is None else f'{labels.kind}-label classes'}. "
                "Take it out of recipe key 'evaluate'."
            )
        self.outputs = labels.names

    def statistics(self, prediction):
        """Return 1, then of each output t, v, t², v², t·v, (v - t)², |v - t| for target t and value v."""
        t = np.ravel(np.asarray(prediction["target"], dtype=np.float64))
        v = np.ravel(np.asarray(prediction["value"], dtype=np.float64))
        return np.concatenate([[1.0], t, v, t * t, v * v, t * v, (v - t) ** 2, np.abs(v - t)])

    def judge(self, prediction):
        """Score less the squared error, the mean over outputs."""
        t, v = (np.ravel(np.asarray(prediction[key], dtype=np.float64)) for key in ("target", "value"))
        return Judgement(-float(((v - t) ** 2).mean()))

    def metrics(self, sums):
        return {name: values.mean(axis=-1) for name, values in self._by_output(sums).items()}

    def by_part(self, sums):
        return self._by_output(sums)

    def details(self, sums, counts):
        """Return a row for each output, where there are several."""
        return {"outputs": [{"output": output} for output in self.outputs]} if len(self.outputs) > 1 else {}

    def _by_output(self, sums):
        """Return each figure by output, shape (..., outputs)."""
        n = sums[..., :1]
        t, v, tt, vv, tv, squared, absolute = np.split(sums[..., 1:], 7, axis=-1)
        t_variation, v_variation = _variation(n, t, tt), _variation(n, v, vv)
        covariation = tv - t * v / n
        return {
            "mse": squared / n,
            "mae": absolute / n,
            "r2": 1 - squared / t_variation,
            "pearson": np.clip(covariation / np.sqrt(t_variation * v_variation), -1, 1),
        }


def _variation(n, x, xx):
    """Return Σ(x - mean)² from n, Σx and Σx²; nan where it is below the rounding error of the sums."""
    variation = xx - x * x / n
    return np.where(variation > n * np.finfo(np.float64).eps * xx, variation, np.nan)
