"""The evaluator that runs the harness on the models of a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftengine.api import (
    Evaluator,
    ExampleScores,
    IntervalEvaluator,
    LoadedModel,
    Metric,
    ModelEvaluator,
    Prediction,
    Rows,
    Task,
)
from ftengine.errors import RecipeError
from ftengine_lm_eval.options import Options


class LmEval(ModelEvaluator):
    """Run tasks of lm-evaluation-harness on base and tuned model."""

    name = "lm-eval"
    paper = "Biderman et al. 2024, arXiv:2405.14782"

    Config = Options

    def score(self, rows: Rows, weights: np.ndarray) -> dict[str, float]:
        """Return no metrics, as it does not measure the predictions of the recipe's task."""
        return {}

    def benchmarks(self, task: Task) -> dict[str, Evaluator]:
        """Return an evaluator for each of the harness's tasks, without groups; this downloads their data."""
        from ftengine_lm_eval.harness import require_head
        from ftengine_lm_eval.tasks import load_tasks

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RecipeError(
                "lm-eval measures in one process. Take it out of the recipe here, or train in one process."
            )
        require_head(task)
        return {name: Answers(loaded) for name, loaded in load_tasks(self.config.tasks)["tasks"].items()}

    def ask_models(self, loaded: LoadedModel) -> dict[str, list[Prediction]]:
        """Return each metric of each example, before the harness aggregates it.

        Questions about one text, as numbered in the harness's documents, are one group.
        """
        from ftengine_lm_eval.harness import answers

        by_metric: dict[str, list[Prediction]] = {}
        for name, samples in answers(loaded, self.config)["samples"].items():
            rows: dict[int, Prediction] = {}
            for sample in samples:
                values = {f"{metric},{sample['filter']}": sample[metric] for metric in sample["metrics"]}
                row = rows.setdefault(int(sample["doc_id"]), {})
                row.update({key: _kept(value) for key, value in values.items()})
                if (text := _text_of(sample["doc"])) is not None:
                    row["group"] = text
            by_metric[name] = [rows[i] for i in sorted(rows)]
        return by_metric


class Answers(IntervalEvaluator):
    """Figures of one task of the harness (`task`), aggregated by the harness's own functions."""

    def __init__(self, task: Any) -> None:
        from lm_eval.api.metrics import mean

        super().__init__()
        filters = [filter_.name for filter_ in task._filters]
        better, self._make = task.higher_is_better(), task.aggregation()
        names = [(metric, chosen) for metric in self._make for chosen in filters if metric != "bypass"]
        self._means = {f"{m},{chosen}" for m, chosen in names if self._make[m] is mean}
        self.metrics = {
            f"{metric},{chosen}": Metric(
                metric.replace("_", " ") + ("" if chosen == "none" else f" ({chosen})"),
                higher_is_better=better.get(metric),
                interval=f"{metric},{chosen}" in self._means,
            )
            for metric, chosen in names
        }

    def score(self, rows: Rows, weights: np.ndarray) -> dict[str, float]:
        return {name: self._figure(name, rows, weights) for name in self.metrics}

    def score_resamples(self, rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return metrics that are means for many resamples, (B,); other metrics have no interval."""
        means = {}
        for name in self._means:
            values = _numbers(rows.get(name), weights.shape[1])
            there = ~np.isnan(values)
            with np.errstate(invalid="ignore", divide="ignore"):
                means[name] = (weights @ np.where(there, values, 0.0)) / (weights @ there)
        return means

    def trials(self, rows: Rows) -> dict[str, float]:
        """Return the number of examples for metrics that mark answers right or wrong."""
        columns = {name: _numbers(rows.get(name), 0) for name in self._means}
        return {name: float(len(x)) for name, x in columns.items() if len(x) and np.isin(x, (0, 1)).all()}

    def score_examples(self, rows: Rows) -> ExampleScores:
        """Return the first metric that marks answers right or wrong."""
        judging = [name for name in self.metrics if name in self.trials(rows) and self.metrics[name].higher_is_better]
        count = len(next(iter(rows.values()), ()))
        values = _numbers(rows[judging[0]], count) if judging else np.full(count, math.nan)
        return ExampleScores(values, values)

    def _figure(self, name: str, rows: Rows, weights: np.ndarray) -> float:
        if name in self._means:
            return float(self.score_resamples(rows, weights[None])[name][0])
        kept = [] if name not in rows else zip(rows[name], weights, strict=True)
        items = [_read(x) for x, weight in kept if not _missing(x) for _ in range(int(weight))]
        return float(self._make[name.partition(",")[0]](items)) if items else math.nan


def _text_of(doc: Any) -> str | None:
    """Return the number of the text that a document's question is about; None where it has none.

    Data sets with several questions a text have it in `idx`, from which the harness's own metrics take it (MultiRC's
    paragraph, ReCoRD's passage).
    """
    idx = doc.get("idx") if isinstance(doc, Mapping) else None
    numbers = [idx[key] for key in ("paragraph", "passage") if key in idx] if isinstance(idx, Mapping) else []
    return str(numbers[0]) if numbers else None


def _kept(value: Any) -> float | str:
    """Return a number as it is, and what else a figure is made of (texts, pairs) as JSON."""
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return float(value)
    return json.dumps(value, default=lambda item: item.item() if isinstance(item, np.generic) else list(item))


def _read(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _numbers(column: Any, count: int) -> np.ndarray:
    """Return a metric of each example, nan where there is none."""
    return np.full(count, math.nan) if column is None else np.asarray(column, dtype=np.float64)
