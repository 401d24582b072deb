"""Finished runs side by side: what lies between them by their kept predictions, paired by example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ftengine.api import Difference, Table
from ftengine.api.figures import interval, plain, probability
from ftengine.engine.compare import PairDifference, conclude
from ftengine.engine.finished import Run
from ftengine.engine.subprocess_runs import Child
from ftengine.errors import InputError
from ftengine.report.write import names_of
from ftengine.run.records import AuditResult, EvaluationResult


def differences(paths: Sequence[str | Path]) -> Table | str:
    """Return how several finished runs differ in their first metric, or why that cannot be told.

    Of more than two, the best is compared with each other one, by the figures of `compare`. No model is loaded.
    """
    try:
        runs = [Run(path) for path in paths]
        if reason := _not_comparable(runs):
            return reason
        named = zip(names_of([run.path for run in runs]), runs, strict=True)
        children = [Child(name, run.recipe.model_copy(update={"output": str(run.path)})) for name, run in named]
        found = conclude(children, [run.without_model() for run in runs], [True] * len(runs))
    except InputError as error:
        return f"The differences between these runs cannot be computed: {error}"
    pairs = [{one.first, one.second} for one in found.differences]
    reference = next(child.label for child in children if all(child.label in pair for pair in pairs))
    label, many = EvaluationResult.read(runs[0].directory).metrics[found.metric].label, len(runs) > 2
    chosen = f", the run with the best {label}" if many else ""
    adjusted = f"; p is adjusted for all {len(runs) * (len(runs) - 1) // 2} pairs of runs (Holm)" if many else ""
    caption = (
        f"{label[:1].upper()}{label[1:]} of each run minus that of {reference}{chosen}. All answered the same "
        f"{found.examples:,} distinct {found.split} examples, by which they are paired{adjusted}. What another seed "
        "would change is not in it."
    )
    return Table(
        title="Differences between the runs",
        columns=("run", "difference", "95 % interval", "p", f"against {reference}"),
        rows=tuple(_row(one, reference) for one in found.differences),
        caption=caption,
    )


def _not_comparable(runs: Sequence[Run]) -> str:
    """Say why runs cannot be paired by example; "" where they can."""
    results = [EvaluationResult.read(run.directory) for run in runs]
    metrics = {result.headline_metric for result in results}
    if len(metrics) > 1 or None in metrics:
        return "These runs have no first metric in common, so no difference between them is shown."
    contents = {AuditResult.read(run.directory).contents.get(results[0].split or "") for run in runs}
    if len(contents) > 1 or len({str(run.facts.labels) for run in runs}) > 1:
        return "These runs were measured on different examples, so no difference between them is shown."
    return ""


def _row(pair: PairDifference, reference: str) -> tuple[str, ...]:
    """Return a row of the table: the other run minus the reference."""
    turned = pair.first == reference  # compare has the first minus the second
    value, low, high = (None if one is None else -one if turned else one for one in (pair.value, pair.low, pair.high))
    low, high = (high, low) if turned else (low, high)
    better = (pair.better != turned) if pair.supported and pair.better is not None else None
    figure = Difference(pair.value if value is None else value, low, high, pair.p_adjusted, better)
    said = {True: "▲ better", False: "▼ worse", None: "○ not beyond chance"}[better]
    sure = interval(figure, sign=True) or "too few examples to tell", probability(figure.p) or "too few examples"
    return (pair.second if turned else pair.first, plain(figure, sign=True), *sure, said)
