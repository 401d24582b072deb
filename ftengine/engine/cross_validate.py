"""k-fold cross-validation: every example is held out once, and figures cover all folds together.

Each fold is a run whose test split is that fold. The prediction tables of all folds are joined, and figures are
computed over all rows. The report states the limit of these figures: the training sets of the folds share most of
their rows, and one cross-validation gives no unbiased estimate of the variance that this causes (Bengio & Grandvalet
2004, "No unbiased estimator of the variance of k-fold cross-validation", JMLR 5, 1089-1105).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ftengine.api import Baseline, Finding, Listener, SilentListener
from ftengine.data.split import make_splits
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import LabelledTask, PreparedData, prepare_data
from ftengine.engine.subprocess_runs import Child, check_all, require_alike, require_folder, train_unfinished
from ftengine.errors import DataError, InputError, RecipeError
from ftengine.evaluation.results import Measured, compared, paired
from ftengine.evaluation.seed_intervals import SeedFigure, difference_over_seeds, mean_over_seeds
from ftengine.evaluation.stored import measure_again, stored
from ftengine.evaluation.table import Predictions
from ftengine.plugins.registry import Registry
from ftengine.report.verdict import judge
from ftengine.run.cross_validation import CrossValidation, Fold, Spread
from ftengine.run.directory import RunDirectory
from ftengine.run.recipe import Recipe
from ftengine.run.records import EvaluationResult, RunRecords
from ftengine.text import few_groups, has_value, sample_size


def cross_validate(recipe: Recipe, folds: int, *, listener: Listener | None = None) -> CrossValidation:
    """Train once per fold on all the other folds, and compute figures over all held-out examples.

    Each fold has a process of its own and a folder in `recipe.output`, where `crossvalidation.json` is written as well.
    With `train.seeds`, the process trains that many runs, and figures are means over seeds. Unfinished runs are
    resumed; finished ones of the same recipe and data are reused.

    Args:
        recipe: everything but the fold; `data.validation` is cut from each fold's training rows.
        folds: number of folds, at least two.
        listener: receives phases and the messages of the runs.

    Raises:
        InputError: the recipe, data or model is wrong, or there are too few examples; raised before anything trains.
        TrainingError: a run failed; the finished ones are kept.
    """
    listener = listener or SilentListener()
    children = divide(recipe, folds)
    prepared = check(children, listener)
    folder = RunDirectory(recipe.output)
    folder.create()
    with folder.locked():
        reused = train_unfinished(children, prepared, listener)
        result = pool(children, prepared[0].ready, reused)
        result.write(folder)
    return result


def divide(recipe: Recipe, folds: int) -> list[Child]:
    """Return a recipe with its own folder for each fold.

    Raises:
        InputError: fewer than two folds, or the recipe already has test data or separates duplicates.
    """
    require_folds(folds)
    if recipe.data.test is not None:
        raise RecipeError(
            f"data.test is {recipe.data.test!r}, but in cross-validation each fold is the test data once. Set it to "
            "null (--set data.test=null); a test file stays untouched for the model that you train in the end."
        )
    require_folder(recipe.output, "the folds' runs")
    if recipe.data.split.duplicates == "apart":
        raise RecipeError(
            "data.split.duplicates: apart would put equal rows into several folds, so that models are tested on what "
            "they trained on, and examples count twice. Set it to together."
        )
    return [
        Child(
            f"fold {fold}",
            Recipe.make(
                recipe.resolved() | {"output": str(Path(recipe.output) / f"fold-{fold}")},
                [f"data.split.folds={folds}", f"data.split.fold={fold}"],
            ),
        )
        for fold in range(folds)
    ]


def require_folds(folds: int) -> None:
    """Refuse fewer than two folds."""
    if folds < 2:
        raise InputError(f"--folds {folds}: cross-validation needs at least two folds; five and ten are usual.")


def check(children: Sequence[Child], listener: Listener) -> list[PreparedData]:
    """Read and encode every fold; see `check_all`."""

    def prepare(experiment: Experiment, first: PreparedData | None) -> PreparedData:
        try:
            data = prepare_data(experiment)
        except DataError as error:
            raise DataError(_label_held_out_whole(experiment) or str(error)) from None
        if first is not None and data.ready.task.labels != first.ready.task.labels:
            raise InputError(
                "its training rows have other labels than those of fold 0, so that their figures do not add up. "
                "Take fewer folds, or leave out labels that few examples have."
            )
        return data

    return check_all(children, listener, prepare)


def _label_held_out_whole(experiment: Experiment) -> str:
    """Name a label all of whose rows this fold holds out, so that none is left to train on; "" where there is none."""
    data, task = experiment.recipe.data, experiment.make_task()
    splits = make_splits(data, task, experiment.recipe.seed, experiment.registry, audited=False).mapping()
    trained = {label for view in splits["train"].views(task) for label in view.labels}
    places: dict[str, list[str]] = {}
    for i, view in enumerate(splits["test"].views(task)):
        for label in set(view.labels) - trained:
            places.setdefault(label, []).append(splits["test"].where(i))
    if not places:
        return ""
    label, rows = min(places.items(), key=lambda item: (len(item[1]), item[0]))
    has = f"one row ({rows[0]})" if len(rows) == 1 else f"{len(rows)} rows (the first {rows[0]})"
    return (
        f"label {label!r} has {has}, and fold {data.split.fold} holds {'it' if len(rows) == 1 else 'all of them'} out, "
        "so that nothing of it is left to train on. Add rows of this label, or leave it out."
    )


def pool(children: Sequence[Child], ready: LabelledTask, reused: Sequence[bool]) -> CrossValidation:
    """Compute the figures of finished folds together.

    Raises:
        RunError: a fold's figures are missing or damaged, or a fold ran on another base, precision or device.
    """
    require_alike(children)
    evaluations = [[EvaluationResult.read(run) for run in child.runs] for child in children]
    metrics, names = evaluations[0][0].metrics, list(evaluations[0][0].tuned)
    unpooled = [name for name in names if not metrics[name].pooled]
    sides = [_pooled(runs, ready) for runs in zip(*(child.runs for child in children), strict=True)]
    base, tuned = _of_median_seed(sides, evaluations[0][0].headline_metric or names[0])
    weights = tuned.predictions.weights(0, 0)
    examples, (rows, worth) = weights.groups, (len(weights), weights.worth()) if weights.grouped else (None, None)
    over, figures = _over_seeds(sides), compared(base, tuned)
    if len(sides) > 1:
        figures |= {
            "base": {name: mean.estimate(base.figures[name]) for name, mean in over["base"].items()},
            "tuned": {name: mean.estimate(tuned.figures[name]) for name, mean in over["tuned"].items()},
            "difference": {name: mean.difference(tuned.figures[name]) for name, mean in over["difference"].items()},
        }
    for side in ("base", "tuned", "difference"):
        figures[side] = {name: figure for name, figure in figures[side].items() if name not in unpooled}
    pooled = EvaluationResult(
        split="pooled test",
        metrics={name: metrics[name] for name in figures["tuned"]},
        paired=paired(base, tuned) if len(sides) == 1 else None,
        **figures,
    )
    baselines = {name: Baseline.of(facts) for name, facts in tuned.details.items()}
    return CrossValidation(
        folds=len(children),
        examples=examples,
        rows=rows,
        worth=worth,
        base=pooled.base,
        tuned=pooled.tuned,
        difference=pooled.difference,
        higher_is_better={name: metrics[name].higher_is_better for name in names},
        baselines={name: baseline for name, baseline in baselines.items() if baseline is not None},
        verdict=judged(children[0].runs[0], pooled, ready.registry),
        spread={name: _spread([_mean(name, of_seeds) for of_seeds in evaluations]) for name in names},
        runs=tuple(
            Fold(
                fold=number,
                run=str(run.path),
                examples=next(iter(evaluation.tuned.values())).n,
                rows=next(iter(evaluation.tuned.values())).rows,
                base=evaluation.base,
                tuned=evaluation.tuned,
                reused=done,
            )
            for number, (child, of_seeds, done) in enumerate(zip(children, evaluations, reused, strict=True))
            for run, evaluation in zip(child.runs, of_seeds, strict=True)
        ),
        seeds={name: _spread(mean.values) for name, mean in over["tuned"].items() if name not in unpooled},
        statement=statement(len(children), examples, rows, unpooled, worth, len(sides)),
    )


def judged(fold: RunDirectory, pooled: EvaluationResult, registry: Registry) -> Finding:
    """Judge the quality of all folds' answers together.

    Args:
        fold: one of the runs, from which rules read how the models were trained, but no examples.
        pooled: the figures over all folds.
        registry: holds the rules.
    """
    records = RunRecords.read(fold.path)
    return judge(replace(records, evaluation=pooled, examples=None), registry).quality


def _over_seeds(sides: Sequence[tuple[Measured, Measured]]) -> dict[str, dict[str, SeedFigure]]:
    """Return by metric the means over seeds, each of which answered every example; {} for a single seed."""
    if len(sides) == 1:
        return {"base": {}, "tuned": {}, "difference": {}}
    by_name = {
        name: [[side.figures[name] for side in of] for of in zip(*sides, strict=True)]
        for name in sides[0][1].figures
        if all(name in side.figures for of in sides for side in of)
    }
    return {
        "base": {name: mean_over_seeds(before) for name, (before, _) in by_name.items()},
        "tuned": {name: mean_over_seeds(after) for name, (_, after) in by_name.items()},
        "difference": {name: difference_over_seeds(before, after) for name, (before, after) in by_name.items()},
    }


def _of_median_seed(sides: Sequence[tuple[Measured, Measured]], metric: str) -> tuple[Measured, Measured]:
    """Return base and tuned model of the seed with the median figure, of those seeds whose figure is defined."""
    values = [tuned.figures[metric].value for _, tuned in sides]
    order = sorted((i for i, value in enumerate(values) if not math.isnan(value)), key=values.__getitem__)
    return sides[order[(len(order) - 1) // 2]] if order else sides[0]


def _pooled(runs: Sequence[RunDirectory], ready: LabelledTask) -> tuple[Measured, Measured]:
    """Measure base and tuned models over the examples of all folds; nothing is fitted across folds."""
    # Equal examples are in one fold, so that the groups of different folds are different ones.
    tables = [Predictions.join([stored(run, "test", side) for run in runs]) for side in ("base", "tuned")]
    recipe, evaluators = ready.recipe, ready.evaluators()
    weights = tables[1].weights(recipe.seed, recipe.evaluation.resamples)
    base, tuned = (measure_again(table, evaluators, ready.task, weights) for table in tables)
    return base, tuned


def _mean(name: str, of_seeds: Sequence[EvaluationResult]) -> float | None:
    """Return a tuned model's figure on a fold, as the mean over seeds; None if one of them has none."""
    figures = [evaluation.tuned.get(name) for evaluation in of_seeds]
    values = [figure.value for figure in figures if has_value(figure)]
    return statistics.fmean(values) if len(values) == len(figures) else None


def _spread(values: Sequence[float | None]) -> Spread:
    defined = [value for value in values if value is not None]
    if len(defined) < len(values):
        return Spread(values=tuple(values))
    return Spread(
        values=tuple(values),
        mean=statistics.fmean(defined),
        std=statistics.stdev(defined),
        least=min(defined),
        greatest=max(defined),
    )


def statement(
    folds: int,
    examples: int,
    rows: int | None = None,
    unpooled: Sequence[str] = (),
    worth: float | None = None,
    seeds: int = 1,
) -> str:
    """Say in words what the intervals cover and what they do not.

    Args:
        unpooled: metrics that have no figure over all folds.
        seeds: number of seeds that each fold was trained with.
    """
    drawn = "examples" if rows is None else "groups"
    few = f" {caution}" if (caution := few_groups(examples, worth)) else ""
    no_figure = (
        f" {', '.join(unpooled)} {'has' if len(unpooled) == 1 else 'have'} no figure over all examples: "
        "it would set scores of different models against each other. See the folds' values and their mean."
    )
    shared = (
        f"any two of the {folds} training sets share about {100 * (folds - 2) / (folds - 1):.0f} % of their rows"
        if folds > 2
        else "each of the two training sets is what the other one is tested on"
    )
    cover, missing = f"the choice of these {drawn}, for the {folds} models as they were trained", " or another seed"
    if seeds > 1:
        cover = (
            f"the choice of these {drawn} and of seeds, with {seeds} as replicates of the whole cross-validation "
            "(crossed random effects; Student's t with Satterthwaite's degrees of freedom)"
        )
        missing = ""
    return (
        f"Each of {sample_size(examples, rows)} was answered by a model that did not train on it. The intervals cover "
        f"{cover}. They do not cover what other training data{missing} would change: {shared}, "
        "so the folds are not independent repetitions, and one cross-validation gives no unbiased estimate "
        "of that variance (Bengio & Grandvalet 2004). The spread over folds is a description and no interval. "
        "The figures are of models trained on a part of the data; the model "
        f"to use is trained on all of it.{no_figure if unpooled else ''}{few}"
    )
