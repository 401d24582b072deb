"""Finished runs side by side: differences of their stored predictions, paired by example."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ftengine.api import Metric, Table
from ftengine.engine.compare import compare_runs
from ftengine.engine.finished import Run
from ftengine.engine.subprocess_runs import Child
from ftengine.errors import InputError
from ftengine.report.page import Overview
from ftengine.report.write import names_of
from ftengine.run.comparison import Comparison, PairDifference
from ftengine.run.cross_validation import CrossValidation
from ftengine.run.directory import RunDirectory
from ftengine.run.records import AuditResult, EvaluationResult
from ftengine.text import (
    Figure,
    few_groups,
    has_value,
    interval,
    listed,
    number,
    plain,
    probability,
    quoted,
    sample_size,
    with_ends,
)


def together(folder: str | Path) -> Comparison | CrossValidation | None:
    """Return the result of `compare` or `cross-validate` in a folder of runs; None if neither made it.

    Raises:
        RunError: the file is damaged, or of another version.
    """
    directory = RunDirectory(folder)
    if (directory.path / Comparison.file).is_file():
        return Comparison.read(directory)
    return CrossValidation.read(directory) if (directory.path / CrossValidation.file).is_file() else None


def overview(paths: Sequence[str | Path], made: Comparison | CrossValidation | None = None) -> Overview:
    """Return an overview of several finished runs.

    Args:
        paths: the runs' folders.
        made: the result of `compare` or `cross-validate`, if one of them made the runs.
    """
    if isinstance(made, CrossValidation):
        return _of_folds(made, EvaluationResult.read(RunDirectory(paths[0])).metrics)
    if made is None:
        return differences(paths)
    return Overview(title=f"{len(made.strategies)} strategies compared", lead=tuple(made.statement.splitlines()))


def differences(paths: Sequence[str | Path]) -> Overview:
    """Return the differences of several finished runs in their first metric, or why they cannot be computed.

    Runs measured on the same examples are compared as by `compare`: of more than two, the best one with each other
    one. No model is loaded.
    """
    try:
        runs = [Run(path) for path in paths]
        alike: dict[tuple[str, ...], list[tuple[str, Run]]] = {}
        for name, run in zip(names_of([run.path for run in runs]), runs, strict=True):
            alike.setdefault(_measured_by(run), []).append((name, run))
        sets = [named for key, named in alike.items() if len(named) > 1 and key[0]]
        unmatched = [name for named in alike.values() if named not in sets for name, _ in named]
        tables = tuple(_table(named, all_runs=not unmatched and len(sets) == 1) for named in sets)
    except InputError as error:
        return Overview(notes=(f"The differences between these runs cannot be computed: {error}",))
    if not unmatched:
        return Overview(tables=tables)
    if tables:
        each = "was measured on examples" if len(unmatched) == 1 else "were each measured on examples"
        return Overview(tables=tables, notes=(f"{listed(unmatched)} {each}, or by a metric, of no other run here.",))
    metrics = {key[0] for key in alike}
    why = (
        "were measured on different examples, or by other options"
        if len(metrics) == 1 and "" not in metrics
        else ("have no first metric in common")
    )
    return Overview(notes=(f"These runs {why}, so no difference between them is shown.",))


def _measured_by(run: Run) -> tuple[str, ...]:
    """Return what runs must share to be paired: first metric ("" without one), examples, labels, groups, options."""
    result = EvaluationResult.read(run.directory)
    content = AuditResult.read(run.directory).contents.get(result.split or "", "")
    metric = result.headline_metric or ""
    evaluator = result.metrics[metric].evaluator if metric else ""
    spec = next((entry for entry in run.recipe.evaluate if entry["name"] == evaluator), {"name": evaluator})
    options = run.registry.factory("evaluator", spec, f"evaluate.{evaluator}").described if evaluator else {}
    groups = f"{run.recipe.data.group_column} {run.recipe.data.leaks == 'warn'}"  # which measures leaking rows apart
    return metric, content, str(run.facts.labels), groups, json.dumps(options, sort_keys=True)


def _table(named: Sequence[tuple[str, Run]], *, all_runs: bool) -> Table:
    """Return the differences of named runs on the same examples; `all_runs` says that the page has no other runs."""
    children = [Child(name, run.recipe.model_copy(update={"output": str(run.path)})) for name, run in named]
    comparison = compare_runs(children, [run.without_model() for _, run in named], [True] * len(named), ranked="all")
    pairs = [{pair.first, pair.second} for pair in comparison.differences]
    reference = next(child.label for child in children if all(child.label in pair for pair in pairs))
    label, many = EvaluationResult.read(named[0][1].directory).metrics[comparison.metric].label, len(named) > 2
    chosen = f", the run with the best {label}" if many else ""
    adjusted = f"; p is adjusted for all {len(named) * (len(named) - 1) // 2} pairs of runs (Holm)" if many else ""
    drawn = sample_size(comparison.examples, comparison.rows, f"distinct {comparison.split} example")
    caption = (
        f"{label[:1].upper()}{label[1:]} of each run minus that of {reference}{chosen}. All answered the same "
        f"{drawn}, by which they are paired{adjusted}. What another seed "
        f"would change is not in it. {few_groups(comparison.examples, comparison.worth)}".rstrip()
    )
    return Table(
        title=f"Differences between {'the runs' if all_runs else listed([name for name, _ in named])}",
        columns=("run", "difference", "95 % interval", "p", f"against {reference}"),
        rows=tuple(_row(pair, reference) for pair in comparison.differences),
        caption=caption,
    )


def _of_folds(made: CrossValidation, metrics: Mapping[str, Metric]) -> Overview:
    """Return the figures of all folds together, and how they spread over the folds."""
    rows = []
    for name, spread in made.spread.items():
        between = "undefined"
        if spread.least is not None:
            between = f"{number(spread.least)} to {number(spread.greatest)}"
        std = number(spread.std) if spread.std is not None else "undefined"
        change, unpooled = made.difference.get(name), name not in made.tuned
        sides = (_known_with_ends(made.base.get(name)), _known_with_ends(made.tuned.get(name)))
        moved = (_known_with_ends(change, sign=True), probability(change.p if change else None) or "not tested")
        label = metrics[name].label if name in metrics else name
        rows.append((label, *(("fold by fold only",) * 4 if unpooled else (*sides, *moved)), between, std))
    reached = []
    for baseline in made.baselines.values():
        values = [
            f"{metrics[name].label} {number(level)}" for name, level in baseline.figures.items() if name in made.tuned
        ]
        reached.append(f" Baseline that ignores the inputs (e.g. always {quoted(baseline.answer)}): {listed(values)}.")
    table = Table(
        title="Pooled figures",
        columns=("metric", "base", "tuned", "difference", "p", "tuned, by fold", "standard deviation of folds"),
        rows=tuple(rows),
        caption=f"{sample_size(made.examples, made.rows)}, with 95 % intervals.{''.join(reached)}",
    )
    lead, title = (made.verdict.text,), f"Cross-validation, {made.folds} folds"
    return Overview(title=title, lead=lead, tables=(table,), notes=(made.statement,), folds=True)


def _known_with_ends(figure: Figure | None, *, sign: bool = False) -> str:
    return with_ends(figure, sign=sign) if has_value(figure) else "undefined"


def _row(pair: PairDifference, reference: str) -> tuple[str, ...]:
    """Return a row of the table: the other run minus the reference."""
    oriented = pair.negated() if pair.first == reference else pair
    verdict = {True: "▲ better", False: "▼ worse", None: "○ not beyond chance"}[
        oriented.better if oriented.supported else None
    ]
    sure = (
        interval(oriented, sign=True) or "too few examples to tell",
        probability(oriented.p_adjusted) or "too few examples",
    )
    return (oriented.first, plain(oriented, sign=True), *sure, verdict)
