"""An evaluator of labels.

What it cannot measure it refuses in `set_labels`, before anything trains. Intervals, slices, comparison and the report
come from the engine, which calls `score` with the weights of resamples. A metric that should decide the verdict in
place of the task's first is declared with `primary=True`. An evaluator reads either what `Task.predict` gives or what
`Task.generate` gives (docs/plugins/predictions.md).
"""

import sklearn.metrics

from ftengine.api import Evaluator, Metric
from ftengine.errors import RecipeError


class Matthews(Evaluator):
    """Correlation of predicted and true labels (Matthews 1975)."""

    name = "matthews"
    reads = frozenset({"label", "predicted"})
    metrics = {"mcc": Metric("Matthews correlation", higher_is_better=True)}  # noqa: RUF012

    def set_labels(self, task, labels):
        if labels.kind != "single":
            raise RecipeError(f"evaluator matthews needs one label an example; task {task} has several.")

    def score(self, rows, weights):
        return {"mcc": sklearn.metrics.matthews_corrcoef(rows["label"], rows["predicted"], sample_weight=weights)}
