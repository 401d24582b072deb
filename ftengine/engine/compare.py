"""Comparing strategies on the same data and seed, and testing which differences the data supports."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from ftengine.api import Difference, Listener, SilentListener
from ftengine.data.encoding import EncodedSplit
from ftengine.engine.comparison_statement import statement
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import LabelledTask, PreparedData, held_out, prepare_data
from ftengine.engine.subprocess_runs import (
    Child,
    check_all,
    require_alike,
    require_folder,
    require_metric,
    train_unfinished,
)
from ftengine.errors import InputError, RunError
from ftengine.evaluation import holm, is_beyond_chance
from ftengine.evaluation.differences import compare
from ftengine.evaluation.results import Measured, exact_of
from ftengine.evaluation.seed_intervals import difference_of_recipes, mean_over_seeds
from ftengine.evaluation.stored import measure_again, same_examples, stored, validation_of
from ftengine.evaluation.table import Predictions
from ftengine.plugins.registry import Registry
from ftengine.run.comparison import Comparison, Contender, PairDifference
from ftengine.run.directory import RunDirectory
from ftengine.run.recipe import Recipe, usual_learning_rate
from ftengine.run.records import EvaluationResult, TrainingResult, Verdict

SECTION = "train."
"""Keys of the recipe that may differ between strategies: a learning rate that suits one does not suit another."""

JUDGES = "judges"
"""Kind of findings that the comparison repeats."""

LONGEST_NAME = 100
"""Characters of a folder's name; file systems allow 255 bytes."""


def compare_strategies(
    recipe: Recipe,
    strategies: Sequence[str | Mapping[str, Any]],
    *,
    metric: str | None = None,
    all_pairs: bool = False,
    same_rate: bool = False,
    listener: Listener | None = None,
) -> Comparison:
    """Train each strategy by the recipe and compare their figures.

    Each strategy has a process of its own, which keeps peak memory apart, and a folder in `recipe.output`, where
    `comparison.json` is written as well. With `train.seeds`, the process trains that many runs, and differences are
    tested with seeds as replicates. Unfinished runs are resumed; finished ones of the same recipe and data are reused.

    Args:
        recipe: everything but the strategy; options and learning rate of its own strategy hold where the names
            agree, and another strategy trains at its usual learning rate.
        strategies: a name, or a mapping of `name`, options, and keys of the recipe's `train` (`train.learning_rate`).
        metric: what to compare; by default the first of the task's evaluators.
        all_pairs: whether every pair is compared, rather than the best with each other.
        same_rate: whether all train at the recipe's learning rate.
        listener: receives phases and the messages of the runs.

    Raises:
        InputError: the recipe, data or model is wrong, or a strategy does not fit; raised before anything trains.
        TrainingError: a run failed; the finished ones are kept.
    """
    listener = listener or SilentListener()
    contenders = contend(recipe, strategies, same_rate=same_rate)
    prepared = check(contenders, metric, listener)
    listener.message(_rates(contenders).strip())
    folder = RunDirectory(recipe.output)
    folder.create()
    with folder.locked():
        reused = train_unfinished(contenders, prepared, listener)
        require_alike(contenders)
        result = compare_runs(contenders, [data.ready for data in prepared], reused, metric, all_pairs=all_pairs)
        result.write(folder)
    return result


def contend(recipe: Recipe, strategies: Sequence[str | Mapping[str, Any]], *, same_rate: bool = False) -> list[Child]:
    """Return a recipe with its own folder for each strategy (InputError: the list is invalid)."""
    if len(strategies) < 2:
        named = f" ({strategies[0]!r})" if strategies else ""
        raise InputError(
            f"compare needs at least two strategies, separated by commas; it got {len(strategies)}{named}."
        )
    require_folder(recipe.output, "the compared runs")
    contenders: dict[str, Child] = {}
    registry = Registry()
    registry.plugins.raise_if_broken()
    for spec in strategies:
        contender = _contender(recipe, spec, None if same_rate else registry)
        if contender.recipe.output in contenders:
            raise InputError(f"strategy {contender.label!r} is named twice. Remove one of them.")
        contenders[contender.recipe.output] = contender
    first, *others = contenders.values()
    seeds = first.recipe.train.seeds
    if other := next((one for one in others if one.recipe.train.seeds != seeds), None):
        raise InputError(
            f"train.seeds is {seeds} for {first.label!r} and {other.recipe.train.seeds} for {other.label!r}; compare "
            "trains as many seeds of each strategy. Set it for all: --set train.seeds=N."
        )
    return list(contenders.values())


def _contender(recipe: Recipe, spec: str | Mapping[str, Any], registry: Registry | None) -> Child:
    entry = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    name = entry.pop("name", None)
    if not isinstance(name, str) or not name:
        raise InputError(f"strategy {spec!r}: write a name, or a mapping with name and options.")
    shared = {key: value for key, value in entry.items() if "." in key}
    options = {key: value for key, value in entry.items() if key not in shared}
    for key in shared:
        if not key.startswith(SECTION):
            raise InputError(
                f"strategy {name!r} sets {key!r}; of the recipe only keys of train (such as train.learning_rate) may "
                "differ between strategies that are compared."
            )
    content = recipe.resolved()
    own = content["strategy"] if content["strategy"]["name"] == name else {}
    rate_from = "the recipe's"
    if not own and registry is not None:  # the recipe's rate was chosen for another
        usual = registry.get("strategy", name, "--strategies").cls.traits.learning_rate
        share = registry.get("task", recipe.task["name"], "task").cls.traits.learning_rate_share
        content["train"]["learning_rate"] = usual_learning_rate(usual, share)
        rate_from = f"what `ftengine init` proposes for {name}, as the recipe's is for {content['strategy']['name']}"
    if "train.learning_rate" in shared:
        rate_from = "as --strategies says"
    content["strategy"] = {**own, "name": name, **options}
    parts = [name, *(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in entry.items())]
    label = " ".join(parts)
    content["output"] = str(Path(recipe.output) / _folder_name(parts))
    overrides = [f"{key}={json.dumps(value)}" for key, value in shared.items()]
    return Child(label, Recipe.make(content, overrides, origin=f"strategy {name!r}"), rate_from)


def _rates(contenders: Sequence[Child]) -> str:
    """Return a line with each contender's learning rate and its origin; "" for finished runs."""
    rates = [
        f"{contender.label} {contender.recipe.train.learning_rate:g}, {contender.rate_from}"
        for contender in contenders
        if contender.rate_from
    ]
    return f"\nLearning rates: {'; '.join(rates)}." if rates else ""


def _folder_name(parts: Sequence[str]) -> str:
    """Return a unique folder name made of the parts of a label; a hash replaces what a name cannot hold."""
    label, name = " ".join(parts), re.sub(r"[^\w.=-]+", "-", " ".join(parts)).strip("-")
    plain = re.fullmatch(r"[\w.-]+", parts[0]) and all(re.fullmatch(r"[\w.]+=[\w.-]+", part) for part in parts[1:])
    if plain and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{blake2b(label.encode(), digest_size=4).hexdigest()}"


def check(contenders: Sequence[Child], metric: str | None, listener: Listener) -> list[PreparedData]:
    """Check every contender completely; see `check_all`."""

    def prepare(experiment: Experiment, first: PreparedData | None) -> PreparedData:
        data = prepare_data(experiment, like=first)
        if held_out(data.encoded) is None:
            raise InputError("strategies are compared on held-out data; set data.validation or data.test.")
        require_metric(data.ready, metric)
        return data

    prepared = check_all(contenders, listener, prepare)
    _require_same_examples(contenders, [data.encoded for data in prepared])
    return prepared


def _require_same_examples(contenders: Sequence[Child], read: Sequence[Mapping[str, EncodedSplit]]) -> None:
    """Raise InputError where strategies leave different room for the input, so that texts are cut differently."""
    facts = [
        {name: (len(split), float(split.weights.sum()), split.truncated) for name, split in splits.items()}
        for splits in read
    ]
    for contender, own in zip(contenders, facts, strict=True):
        if own != facts[0]:
            limits = [split.max_length for splits in read for split in splits.values() if split.max_length is not None]
            hint = f"Set task.max_length={min(limits)}, or less." if limits else "Shorten the longest examples."
            raise InputError(
                f"{contenders[0].label} and {contender.label} would cut the longest examples at different lengths, as "
                f"one of them adds tokens to the model's input. {hint}"
            )


def compare_runs(
    contenders: Sequence[Child],
    tasks: Sequence[LabelledTask],
    reused: Sequence[bool],
    metric: str | None = None,
    *,
    all_pairs: bool = False,
    ranked: Literal["sound", "all"] = "sound",
) -> Comparison:
    """Compare finished runs.

    With `ranked="sound"`, strategies whose verdict is an alarm about their answers are listed but not ranked.

    Raises:
        RunError: a run's figures are missing or damaged, or runs measured different examples.
        InputError: the metric was not measured.
    """
    first, seeds = EvaluationResult.read(contenders[0].runs[0]), len(contenders[0].runs)
    metric = metric or first.headline_metric or ""
    if metric not in first.tuned:
        raise InputError(f"metric {metric!r} was not measured. Measured: {', '.join(first.tuned)}.")
    direction = first.metrics[metric].higher_is_better
    alarms = [_alarm(contender) if ranked == "sound" else None for contender in contenders]
    measured = _measured(contenders, tasks, first, metric)
    sound = [(child, results) for child, results, alarm in zip(contenders, measured, alarms, strict=True) if not alarm]
    differences, best = _shown_differences(sound, metric, direction, all_pairs)
    split, figure = first.split or "", first.tuned[metric]
    examples, rows, worth = figure.n, figure.rows, figure.worth
    return Comparison(
        metric=metric,
        higher_is_better=direction,
        split=split,
        examples=examples,
        rows=rows,
        worth=worth,
        base=first.base[metric],
        strategies=tuple(
            _row(contender, ready, results, metric, done, alarm)
            for contender, ready, results, done, alarm in zip(contenders, tasks, measured, reused, alarms, strict=True)
        ),
        against="all" if best is None else "best",
        differences=tuple(differences),
        statement=_unranked(contenders, alarms)
        + statement(
            metric,
            split,
            examples,
            differences,
            rows=rows,
            worth=worth,
            best=best,
            strategies=len(sound),
            seeds=seeds,
            higher_is_better=direction,
        )
        + _rates(contenders)
        + (_judges(contenders) if ranked == "sound" else ""),
        seeds=seeds,
    )


def _shown_differences(
    sound: Sequence[tuple[Child, Sequence[Measured]]], metric: str, higher_is_better: bool | None, all_pairs: bool
) -> tuple[list[PairDifference], str | None]:
    """Return the differences of all pairs and None, or of the best with each other strategy and the best's label."""
    differences, best = pair_differences(sound, metric), None
    if not all_pairs and len(sound) > 2:
        values = {run.label: statistics.fmean(one.figures[metric].value for one in results) for run, results in sound}
        order = sorted((label for label, value in values.items() if not math.isnan(value)), key=values.__getitem__)
        best = next(iter(order if higher_is_better is False else reversed(order)), None)
    if best is not None:
        differences = [pair for pair in differences if best in (pair.first, pair.second)]
    return differences, best


def _alarm(contender: Child) -> str | None:
    """Return the headline of a run's verdict where its answers raise an alarm; None where they do not.

    Of several seeds, that of the first alarm if more than half of them are alarms.
    """
    verdicts = [Verdict.read(run) for run in contender.runs]
    alarms = [verdict.headline for verdict in verdicts if verdict.quality.level == "alarm"]
    if 2 * len(alarms) <= len(verdicts):
        return None
    return f"{len(alarms)} of {len(verdicts)} seeds: {alarms[0]}" if len(verdicts) > 1 else alarms[0]


def _unranked(contenders: Sequence[Child], alarms: Sequence[str | None]) -> str:
    """List the strategies that are not ranked, with the reason, one per line."""
    lines = [f"  {contender.label}: {alarm}\n" for contender, alarm in zip(contenders, alarms, strict=True) if alarm]
    return "".join(["Not ranked, as their verdicts are alarms:\n", *lines]) if lines else ""


def _judges(contenders: Sequence[Child]) -> str:
    """Return what the runs' verdicts say of judges' preferences, one per line; "" for none."""
    lines = [
        f"  {contender.label}{f' {run.path.name}' if len(contender.runs) > 1 else ''}: {finding.text}"
        for contender in contenders
        for run in contender.runs
        for finding in Verdict.read(run).findings
        if finding.kind == JUDGES
    ]
    return "\n".join(["\nPreferences of judges:", *lines]) if lines else ""


def _measured(
    contenders: Sequence[Child], tasks: Sequence[LabelledTask], evaluation: EvaluationResult, metric: str
) -> list[list[Measured]]:
    """Measure each tuned model, by contender and seed, with the evaluator of a metric, with the same weights."""
    split, name = evaluation.split or "", evaluation.metrics[metric].evaluator
    tables = [[stored(run, split, "tuned") for run in contender.runs] for contender in contenders]
    if not same_examples([table for of_seeds in tables for table in of_seeds]):
        raise RunError(
            f"{contenders[0].label} and the others were not measured on the same {split} examples, so they cannot be "
            "paired. Remove the older runs, or choose another folder with --output DIR."
        )
    recipe = contenders[0].recipe
    weights = tables[0][0].weights(recipe.seed, recipe.evaluation.resamples)

    def measure(ready: LabelledTask, run: RunDirectory, table: Predictions) -> Measured:
        evaluators = [evaluator for evaluator in ready.evaluators() if evaluator.name == name]
        return measure_again(table, evaluators, ready.task, weights, validation_of(run, split, "tuned"))

    return [
        [measure(ready, run, table) for run, table in zip(contender.runs, of_seeds, strict=True)]
        for contender, ready, of_seeds in zip(contenders, tasks, tables, strict=True)
    ]


def pair_differences(measured: Sequence[tuple[Child, Sequence[Measured]]], metric: str) -> list[PairDifference]:
    """Return the differences of all pairs of strategies, each measured with one seed or with several.

    The correction covers all pairs even where only those with the best strategy are shown, since the best one was
    chosen on the same examples.
    """
    differences, pairs = [], list(combinations(measured, 2))
    for (a, first), (b, second) in pairs:
        difference, more = _difference(first, second, metric, len(pairs))
        differences.append(PairDifference(**vars(difference), first=a.label, second=b.label, **more))
    for i, p in holm({i: pair.p for i, pair in enumerate(differences)}).items():
        adjusted = replace(differences[i], p_adjusted=p)
        supported = is_beyond_chance(adjusted)
        differences[i] = replace(adjusted, supported=supported, settled_by=None if supported else adjusted.settled_by)
    return differences


def _difference(
    first: Sequence[Measured], second: Sequence[Measured], metric: str, pairs: int
) -> tuple[Difference, dict[str, Any]]:
    """Return the first strategy minus the second, one of so many pairs, and what `PairDifference` has of seeds."""
    if len(first) == 1:
        (one,), (other,) = first, second
        same = one.predictions.equals(other.predictions)
        return compare(other.figures, one.figures, exact_of(other, one), same=same)[metric], {}
    figures, others = ([seed.figures[metric] for seed in of] for of in (first, second))
    over = difference_of_recipes(figures, others, tests=pairs)
    by_seed = tuple(one.value - other.value for one, other in zip(figures, others, strict=True))
    return over.difference(figures[0]), {"by_seed": by_seed, "settled_by": over.settled_by}


def _row(
    contender: Child,
    ready: LabelledTask,
    measured: Sequence[Measured],
    metric: str,
    reused: bool,
    alarm: str | None,
) -> Contender:
    trainings = [TrainingResult.read(run) for run in contender.runs]
    seconds = [line["seconds"] for run in contender.runs for line in run.metrics() if "seconds" in line]
    measured_fields = ("trainable_parameters", "total_parameters", "steps")
    return Contender(
        label=contender.label,
        strategy=ready.experiment.make_strategy.described,
        learning_rate=contender.recipe.train.learning_rate,
        rate_from=contender.rate_from,
        **_quality(contender, measured, metric),
        peak_memory_bytes=max(training.peak_memory_bytes for training in trainings),
        seconds=sum(training.seconds for training in trainings),
        step_seconds=statistics.median(seconds) if seconds else None,
        disk_bytes=sum(file.stat().st_size for file in contender.runs[0].trained.rglob("*.safetensors")),
        run=str(contender.run.path),
        reused=reused,
        alarm=alarm,
        **{name: getattr(trainings[0], name) for name in measured_fields},
    )


def _quality(contender: Child, measured: Sequence[Measured], metric: str) -> dict[str, Any]:
    """Return a strategy's figures, of several seeds their means, by the fields of `Contender`."""
    if len(measured) == 1:
        figures = EvaluationResult.read(contender.run).tuned
        return {"quality": figures[metric], "figures": figures}
    by_name = {name: [of.figures[name] for of in measured] for name in measured[0].figures}
    means = {name: mean_over_seeds(figures) for name, figures in by_name.items()}
    figures = {name: mean.estimate(by_name[name][0]) for name, mean in means.items()}
    over = means[metric]
    return {"quality": figures[metric], "figures": figures, "by_seed": over.values, "between": over.between}
