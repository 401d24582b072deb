"""An evaluator that tells more than metrics.

`details` yields `Table`, `Matrix` and `LineChart`, which the report draws, and facts by name. `Baseline(…).fact()` is
what is reached without looking at the inputs: the verdict then finds constant answers by its metrics as by those in the
box. With `IntervalEvaluator.baseline_resamples` the engine compares the model with it in resamples; otherwise its
`figures` are taken for exact levels. Several figures with intervals come from `estimate(values)`, where `values` takes
weights (B, n) and returns figures (B, k).
"""

import numpy as np

from ftengine.api import Baseline, Evaluator, Line, LineChart, Metric, Table
from ftengine.errors import RecipeError


class Apart(Evaluator):
    """How many places truth and answer are apart, where labels have an order."""

    name = "apart"
    reads = frozenset({"label", "predicted"})
    metrics = {"within_one": Metric("at most one label off", higher_is_better=True, proportion=True)}  # noqa: RUF012

    def set_labels(self, task, labels):
        if labels.kind != "single":
            raise RecipeError(f"evaluator apart needs one label an example; task {task} has several.")

    def score(self, rows, weights):
        near = np.abs(rows["label"] - rows["predicted"]) <= 1
        return {"within_one": float(np.average(near, weights=weights)) if weights.any() else float("nan")}

    def details(self, rows, estimate):
        apart = np.abs(rows["label"] - rows["predicted"])
        counts = np.bincount(apart)
        yield Table(title="Labels apart", columns=("apart", "examples"), rows=tuple(enumerate(counts.tolist())))
        line = Line(name="", points=tuple(enumerate((counts.cumsum() / len(apart)).tolist())))
        yield LineChart(title="Labels apart", x_label="apart at most", y_label="share of examples", lines=(line,))
        middle = int(np.median(rows["label"]))
        reached = {"within_one": float((np.abs(rows["label"] - middle) <= 1).mean())}
        share = float((rows["label"] == middle).mean())
        yield Baseline(answer=f"label {middle}", share=share, figures=reached, total=len(apart)).fact()
