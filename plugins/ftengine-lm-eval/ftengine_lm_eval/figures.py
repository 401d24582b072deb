"""lm_eval.json and lm_eval.parquet: what base and tuned model came to, with intervals, paired by example."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ftengine.api import Difference, Estimate
from ftengine.errors import RunError
from ftengine_lm_eval.options import Options

FILE = "lm_eval.json"
TABLE = "lm_eval.parquet"
"""A row an example and metric: task, metric, example (its number in the task's data), base, tuned."""

LEVEL = 0.05
FEW = 6
"""Examples below which nothing is said of a difference."""


def _undefined(value: Any) -> Any:
    return value | {"value": math.nan} if isinstance(value, dict) and value.get("value") is None else value


class BenchmarkMetric(BaseModel):
    """One metric of a task; `higher_is_better` is None where the task does not say."""

    model_config = ConfigDict(ser_json_inf_nan="null")

    higher_is_better: bool | None
    base: Annotated[Estimate, BeforeValidator(_undefined)]
    tuned: Annotated[Estimate, BeforeValidator(_undefined)]
    difference: Annotated[Difference, BeforeValidator(_undefined)]


class Benchmark(BaseModel):
    """What one task, or group of tasks, came to; metrics are called as the harness does, "acc,none" (metric,filter)."""

    examples: int
    num_fewshot: int | None
    metrics: dict[str, BenchmarkMetric]


class Benchmarks(BaseModel):
    """lm_eval.json: the version of the harness, what it was asked, and each task's figures."""

    lm_eval: str
    options: dict[str, Any]
    tasks: dict[str, Benchmark]

    @classmethod
    def read(cls, run: Path) -> Benchmarks | None:
        """Read that of a run; None where it has none (RunError: it is damaged)."""
        file = run / FILE
        if not file.is_file():
            return None
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{file} cannot be read: {reason}. Remove it, and run `ftengine lm-eval` again.") from None


def write(run: Path, result: Benchmarks, examples: Mapping[str, list[Any]]) -> None:
    """Write both files into a run, each beside its place and renamed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(dict(examples)), run / f"{TABLE}.partial")
    (run / f"{TABLE}.partial").replace(run / TABLE)
    (run / f"{FILE}.partial").write_text(f"{result.model_dump_json(indent=2)}\n", encoding="utf-8")
    (run / f"{FILE}.partial").replace(run / FILE)


def benchmarked(
    base: Mapping[str, Any], tuned: Mapping[str, Any], options: Options
) -> tuple[Benchmarks, dict[str, list[Any]]]:
    """Make the figures of both models, and the table of examples, from what the harness returned of each."""
    from importlib.metadata import version

    table: dict[str, list[Any]] = {name: [] for name in ("task", "metric", "example", "base", "tuned")}
    tasks = {}
    for task, figures in base["results"].items():
        metrics = {}
        for name in [key for key in figures if "," in key and "_stderr," not in key]:
            one, other = _values(base, task, name), _values(tuned, task, name)
            both = sorted(one.keys() & other.keys())
            x, y = np.array([one[i] for i in both]), np.array([other[i] for i in both])
            higher = base.get("higher_is_better", {}).get(task, {}).get(name.partition(",")[0])
            count = _count(base, task)
            before = _estimate(base["results"][task], name, x, count)
            after = _estimate(tuned["results"][task], name, y, count)
            change = difference(before, after, x, y, higher)
            metrics[name] = BenchmarkMetric(higher_is_better=higher, base=before, tuned=after, difference=change)
            rows = ([task] * len(both), [name] * len(both), both, x.tolist(), y.tolist())
            for column, values in zip(table.values(), rows, strict=True):
                column.extend(values)
        if metrics:
            shots = base.get("n-shot", {}).get(task)
            tasks[task] = Benchmark(examples=_count(base, task), num_fewshot=shots, metrics=metrics)
    return Benchmarks(lm_eval=version("lm_eval"), options=options.model_dump(), tasks=tasks), table


def _count(result: Mapping[str, Any], task: str) -> int:
    """Return how many examples a task, or all tasks of a group, had."""
    counts = result.get("n-samples", {})
    members = [task] if task in counts else result.get("group_subtasks", {}).get(task, [])
    return sum(_count(result, member) if member != task else counts[member]["effective"] for member in members)


def _values(result: Mapping[str, Any], task: str, name: str) -> dict[int, float]:
    """Return a metric's value of each example; empty where the metric is not their mean."""
    metric, _, chosen = name.partition(",")
    samples = [one for one in result["samples"].get(task, []) if one["filter"] == chosen]
    try:
        values = {int(one["doc_id"]): float(one[metric]) for one in samples}
    except (KeyError, TypeError, ValueError):  # what is no number of one example, such as a corpus's texts
        return {}
    figure = result["results"][task][name]
    mean = isinstance(figure, (int, float)) and values and math.isclose(np.mean([*values.values()]), figure)
    return values if mean else {}


def _estimate(figures: Mapping[str, Any], name: str, values: np.ndarray, count: int) -> Estimate:
    """Return a figure with its interval: Wilson's where examples are right or wrong, else by the harness's error."""
    value = float(figures[name])
    metric, _, chosen = name.partition(",")
    error = figures.get(f"{metric}_stderr,{chosen}")
    if len(values) and _judged(values):
        from statsmodels.stats.proportion import proportion_confint

        low, high = map(float, proportion_confint(values.sum(), len(values), method="wilson"))
        return Estimate(value, low, high, count)
    if isinstance(error, (int, float)) and error > 0:
        return Estimate(value, value - 1.96 * error, value + 1.96 * error, count)
    return Estimate(value, None, None, count)


def _judged(*values: np.ndarray) -> bool:
    return all(np.isin(one, (0, 1)).all() for one in values)


def difference(base: Estimate, tuned: Estimate, x: np.ndarray, y: np.ndarray, higher: bool | None) -> Difference:
    """Return tuned minus base, paired by example.

    Right and wrong answers are tested by McNemar's exact test, with the interval of Agresti and Min (2005,
    doi:10.1002/sim.1781); other values by Student's t. There is no test where a metric is no mean of its examples.

    Args:
        x, y: (n,) each example's value of the base and of the tuned model; empty where there are none.
        higher: whether more is better.
    """
    from scipy import stats

    value, n = tuned.value - base.value, len(x)
    if n < FEW:
        return Difference(value, None, None, None, None)
    if _judged(x, y):
        won, lost = int((y > x).sum()), int((y < x).sum())
        p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
        b, c, more = won + 0.5, lost + 0.5, n + 2
        middle, width = (b - c) / more, 1.96 * math.sqrt(b + c - (b - c) ** 2 / more) / more
        low, high = max(middle - width, -1.0), min(middle + width, 1.0)
    else:
        error = float(np.std(y - x, ddof=1)) / math.sqrt(n)
        width = float(stats.t.ppf(0.975, n - 1)) * error
        p = 1.0 if not error and not value else float(stats.ttest_rel(y, x).pvalue) if error else 0.0
        low, high = value - width, value + width
    better = None if higher is None or p > LEVEL or low <= 0 <= high else (value > 0) == higher
    return Difference(value, low, high, p, better)
