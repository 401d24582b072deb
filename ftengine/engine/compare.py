"""Several strategies on the same data and seed, and which differences between them the data supports."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.state import PartialState

from ftengine.api import Listener, SilentListener
from ftengine.data.encoding import EncodedSplit
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import PreparedData, ReadyTask, held_out, prepare_data
from ftengine.engine.subprocess_runs import Child, require_alike, require_metric, require_new_or_same, train_unfinished
from ftengine.errors import InputError, RunError, naming
from ftengine.evaluation.differences import compare as compare_figures
from ftengine.evaluation.figures import Figure, to_json
from ftengine.evaluation.results import Measured, bind, exact_of, fit
from ftengine.evaluation.significance import bootstrap_p, holm
from ftengine.evaluation.stored import same_examples, stored, validation_of
from ftengine.evaluation.weights import Weights
from ftengine.run.directory import RunDirectory
from ftengine.run.recipe import Recipe
from ftengine.run.records import EvaluationResult, TrainingResult
from ftengine.training.precision import choose_precision

LEVEL = 0.05
"""Adjusted p-values up to this support a difference."""
SECTION = "train."
"""Keys of the recipe that may differ between strategies: a learning rate that suits one does not suit another."""

LONGEST_NAME = 100
"""Characters of a folder's name; file systems allow 255 bytes."""


@dataclass(frozen=True)
class Comparison:
    """What strategies came to on the same held-out examples.

    Args:
        metric: what quality means here.
        higher_is_better: its direction; None where the evaluator does not say.
        split: the examples' split.
        examples: distinct ones.
        base: the untuned model's quality: {value, low, high, n}.
        strategies: for each its label, strategy, learning rate, quality, all figures, parameters, peak memory,
            median seconds of a step, bytes of its weights on disk, the run's folder, and whether that was there.
        against: "best": the best against each other strategy; "all": every pair.
        differences: for each such pair, first minus second: value, low, high, p, p_at_most (whether p is the least that
            the bootstrap can give), p_adjusted, better, and supported.
        statement: which differences the data supports, in words.
    """

    metric: str
    higher_is_better: bool | None
    split: str
    examples: int
    base: dict[str, Any]
    strategies: list[dict[str, Any]]
    against: str
    differences: list[dict[str, Any]]
    statement: str

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return asdict(self)


def compare_strategies(
    recipe: Recipe,
    strategies: Sequence[str | Mapping[str, Any]],
    *,
    metric: str | None = None,
    all_pairs: bool = False,
    listener: Listener | None = None,
) -> Comparison:
    """Train each strategy as the recipe says and compare what came of them.

    Each run is a process of its own, so that its peak memory is its own, and a folder in `recipe.output`, where
    `comparison.json` is written as well. Unfinished runs are resumed, finished ones of the same recipe and data
    are taken as they are.

    Args:
        recipe: everything but the strategy; options of its own strategy hold where the names agree.
        strategies: a name, or a mapping of `name`, options, and keys of the recipe's `train` (`train.learning_rate`).
        metric: what to compare; by default the first of the task's evaluators.
        all_pairs: whether every pair is compared, rather than the best with each other.
        listener: told of phases, and of what the runs say.

    Raises:
        InputError: recipe, data or model are wrong, or a strategy does not fit them; found before anything trains.
        TrainingError: a run failed; the finished ones are kept.
    """
    listener = listener or SilentListener()
    contenders = contend(recipe, strategies)
    prepared = check(contenders, metric, listener)
    reused = train_unfinished(contenders, prepared, listener)
    require_alike(contenders)
    result = conclude(contenders, [data.ready for data in prepared], reused, metric, all_pairs=all_pairs)
    RunDirectory(recipe.output).write_json("comparison.json", result.to_json())
    return result


def contend(recipe: Recipe, strategies: Sequence[str | Mapping[str, Any]]) -> list[Child]:
    """Return a recipe for each strategy, each with a folder of its own.

    Raises:
        InputError: there are fewer than two, one is named twice, or it sets a key that all have to share.
    """
    if len(strategies) < 2:
        named = f" ({strategies[0]!r})" if strategies else ""
        raise InputError(
            f"compare needs at least two strategies, separated by commas; there are {len(strategies)}{named}."
        )
    if RunDirectory(recipe.output).is_run():
        raise RunError(
            f"output {recipe.output!r} holds a run of its own; the compared runs are folders inside of output. Choose "
            "another with --output DIR."
        )
    found: dict[str, Child] = {}
    for spec in strategies:
        contender = _contender(recipe, spec)
        if contender.recipe.output in found:
            raise InputError(f"strategy {contender.label!r} is named twice. Leave one of them.")
        found[contender.recipe.output] = contender
    return list(found.values())


def _contender(recipe: Recipe, spec: str | Mapping[str, Any]) -> Child:
    given = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    name = given.pop("name", None)
    if not isinstance(name, str) or not name:
        raise InputError(f"strategy {spec!r}: write a name, or a mapping with name and options.")
    shared = {key: value for key, value in given.items() if "." in key}
    options = {key: value for key, value in given.items() if key not in shared}
    for key in shared:
        if not key.startswith(SECTION):
            raise InputError(
                f"strategy {name!r} sets {key!r}; of the recipe only keys of train (such as train.learning_rate) may "
                "differ between strategies that are compared."
            )
    content = recipe.resolved()
    own = content["strategy"] if content["strategy"]["name"] == name else {}
    content["strategy"] = {**own, "name": name, **options}
    parts = [name, *(f"{key}={_short(value)}" for key, value in given.items())]
    label = " ".join(parts)
    content["output"] = str(Path(recipe.output) / _folder_name(parts))
    overrides = [f"{key}={json.dumps(value)}" for key, value in shared.items()]
    return Child(label, Recipe.make(content, overrides, origin=f"strategy {name!r}"))


def _folder_name(parts: Sequence[str]) -> str:
    """Return the parts of a label as one name, another one for each label; what cannot stand there becomes a hash."""
    label, name = " ".join(parts), re.sub(r"[^\w.=-]+", "-", " ".join(parts)).strip("-")
    plain = re.fullmatch(r"[\w.-]+", parts[0]) and all(re.fullmatch(r"[\w.]+=[\w.-]+", part) for part in parts[1:])
    if plain and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{blake2b(label.encode(), digest_size=4).hexdigest()}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def check(contenders: Sequence[Child], metric: str | None, listener: Listener) -> list[PreparedData]:
    """Check every contender in full, on the data and on a model without weights; nothing is written.

    Raises:
        InputError: what any of the runs would refuse, named by its label.
    """
    experiments = []
    for contender in contenders:  # all recipes before any data is read
        with naming(contender.label):
            experiments.append(Experiment.open(contender.recipe, listener=listener))
            choose_precision(contender.recipe.train.precision, contender.recipe.model.dtype, PartialState().device)
    prepared: list[PreparedData] = []
    for contender, experiment in zip(contenders, experiments, strict=True):
        with naming(contender.label):
            data = prepare_data(experiment, like=prepared[0] if prepared else None)
            if held_out(data.encoded) is None:
                raise InputError("strategies are compared on held-out data; set data.validation or data.test.")
            require_metric(data.ready, metric)
            evaluation_plan(data)
            require_new_or_same(contender.run, data)
        prepared.append(data)
    _require_same_examples(contenders, [data.encoded for data in prepared])
    return prepared


def _require_same_examples(contenders: Sequence[Child], read: Sequence[Mapping[str, EncodedSplit]]) -> None:
    """Refuse to compare where a strategy takes so much of the model's longest input that texts are cut elsewhere."""
    facts = [
        {name: (len(split), float(split.weights.sum()), split.truncated) for name, split in splits.items()}
        for splits in read
    ]
    for contender, found in zip(contenders, facts, strict=True):
        if found != facts[0]:
            limits = [split.max_length for splits in read for split in splits.values() if split.max_length is not None]
            hint = f"Set task.max_length={min(limits)}, or less." if limits else "Shorten the longest examples."
            raise InputError(
                f"{contenders[0].label} and {contender.label} would see different parts of the longest examples, since "
                f"one of them takes room in the model's input. {hint}"
            )


def conclude(
    contenders: Sequence[Child],
    tasks: Sequence[ReadyTask],
    reused: Sequence[bool],
    metric: str | None = None,
    *,
    all_pairs: bool = False,
) -> Comparison:
    """Compare finished runs.

    Raises:
        RunError: a run's figures are missing or damaged.
        InputError: the metric was not measured.
    """
    evaluations = [EvaluationResult.read(contender.run) for contender in contenders]
    first = evaluations[0]
    metric = metric or first.headline_metric or ""
    if metric not in first.tuned:
        raise InputError(f"metric {metric!r} was not measured. There are {', '.join(first.tuned)}.")
    direction = first.metrics[metric].higher_is_better
    differences = _differences(contenders, _measured(contenders, tasks, first, metric), metric)
    best = None if all_pairs or len(contenders) == 2 else _best(contenders, evaluations, metric, direction)
    if best is not None:
        differences = [difference for difference in differences if best in (difference["first"], difference["second"])]
    examples = first.tuned[metric].n
    return Comparison(
        metric=metric,
        higher_is_better=direction,
        split=first.split or "",
        examples=examples,
        base=to_json(first.base[metric]),
        strategies=[
            _row(contender, ready, evaluation, metric, done)
            for contender, ready, evaluation, done in zip(contenders, tasks, evaluations, reused, strict=True)
        ],
        against="all" if best is None else "best",
        differences=differences,
        statement=statement(metric, first.split or "", examples, differences, best=best, strategies=len(contenders)),
    )


def _best(
    contenders: Sequence[Child], evaluations: Sequence[EvaluationResult], metric: str, higher_is_better: bool | None
) -> str | None:
    """Return the label of the strategy with the best figure, the highest where no direction is better."""
    values = {
        contender.label: evaluation.tuned[metric].value
        for contender, evaluation in zip(contenders, evaluations, strict=True)
    }
    known = {label: value for label, value in values.items() if value is not None}
    if not known:
        return None
    return min(known, key=lambda label: known[label] if higher_is_better is False else -known[label])


def _measured(
    contenders: Sequence[Child], tasks: Sequence[ReadyTask], evaluation: EvaluationResult, metric: str
) -> list[Measured]:
    """Return what each tuned model came to by the evaluator of a metric, weighed alike.

    Raises:
        RunError: the runs measured different examples.
    """
    split, name = evaluation.split or "", evaluation.metrics[metric].evaluator
    tables = [stored(contender.run, split, "tuned") for contender in contenders]
    if not same_examples(tables):
        raise RunError(
            f"{contenders[0].label} and the others were not measured on the same {split} examples, so they cannot be "
            "paired. Remove the older runs, or choose another folder with --output DIR."
        )
    recipe = contenders[0].recipe
    weights = Weights(tables[0].groups, recipe.seed, recipe.evaluation.resamples)
    found = []
    for contender, ready, table in zip(contenders, tasks, tables, strict=True):
        evaluators = [evaluator for evaluator in ready.evaluators() if evaluator.name == name]
        bind(evaluators, ready.task.name, ready.task.labels)
        fit(evaluators, validation_of(contender.run, split, "tuned"))
        measured = Measured(table)
        for evaluator in evaluators:
            measured.add(evaluator, weights, answering=not evaluator.reads <= ready.task.predicts)
        found.append(measured)
    return found


def _differences(contenders: Sequence[Child], measured: Sequence[Measured], metric: str) -> list[dict[str, Any]]:
    """Return the differences of all pairs.

    Proportions are tested by McNemar's exact test; among several, others by Student's t, as the bootstrap's p-values
    end where a correction for many leaves nothing. The correction is for all pairs even where only those with the best
    are shown: which is the best was seen on the same examples.
    """
    found = []
    many = len(contenders) > 2
    for (a, first), (b, second) in combinations(zip(contenders, measured, strict=True), 2):
        exact = exact_of(second, first)
        difference = to_json(compare_figures(second.figures, first.figures, exact, among_many=many)[metric])
        least = None if many or metric in exact else _least_p(first.figures[metric], second.figures[metric])
        p = difference["p"]
        at_most = least is not None and p is not None and p <= least * (1 + 1e-9)
        found.append({"first": a.label, "second": b.label, **difference, "p_at_most": at_most})
    known = [difference for difference in found if difference["p"] is not None]
    for difference, adjusted in zip(known, holm([difference["p"] for difference in known]), strict=True):
        difference["p_adjusted"] = adjusted
    for difference in found:
        difference.setdefault("p_adjusted", None)
        difference["supported"] = _is_supported(difference)
    return found


def _least_p(first: Figure, second: Figure) -> float | None:
    """Return the p-value of a difference that no resample contradicts."""
    return bootstrap_p(np.ones_like(first.resampled), min(first.size, second.size))


def _is_supported(difference: Mapping[str, Any]) -> bool:
    low, high, p = difference["low"], difference["high"], difference["p_adjusted"]
    return None not in (low, high, p) and not low <= 0 <= high and p <= LEVEL


def _row(contender: Child, ready: ReadyTask, evaluation: EvaluationResult, metric: str, reused: bool) -> dict[str, Any]:
    run = contender.run
    training = TrainingResult.read(run)
    seconds = [line["seconds"] for line in run.metrics() if "seconds" in line]
    return {
        "label": contender.label,
        "strategy": ready.experiment.make_strategy.described,
        "learning_rate": contender.recipe.train.learning_rate,
        "quality": to_json(evaluation.tuned[metric]),
        "figures": {name: to_json(figure) for name, figure in evaluation.tuned.items()},
        "trainable_parameters": training.trainable_parameters,
        "total_parameters": training.total_parameters,
        "peak_memory_bytes": training.peak_memory_bytes,
        "step_seconds": statistics.median(seconds) if seconds else None,
        "steps": training.steps,
        "seconds": training.seconds,
        "disk_bytes": sum(file.stat().st_size for file in run.trained.rglob("*.safetensors")),
        "run": str(run.path),
        "reused": reused,
    }


def statement(
    metric: str,
    split: str,
    examples: int,
    differences: Sequence[Mapping[str, Any]],
    *,
    best: str | None = None,
    strategies: int | None = None,
) -> str:
    """Say in words which differences the data supports, and how that was decided.

    Args:
        metric, split, examples: what was measured, and on what.
        differences: as `Comparison` has them.
        best: the strategy that the others were compared with; None where every pair was compared.
        strategies: how many there are; None: two.
    """
    supported = [difference for difference in differences if difference["supported"]]
    parts = []
    for difference in supported:
        directed = difference["better"] is not None
        wins = difference["better"] if directed else difference["value"] > 0
        winner, other = [difference["first"], difference["second"]][:: 1 if wins else -1]
        low, high = sorted((abs(difference["low"]), abs(difference["high"])))
        sign = "≤" if difference.get("p_at_most") else "="
        parts.append(
            f"{winner} is {'better' if directed else 'higher'} than {other} by {abs(difference['value']):.3g} "
            f"[{low:.3g}, {high:.3g}], adjusted p {sign} {difference['p_adjusted']:.2g}"
        )
    found = "; ".join(parts) or "no difference between these strategies"
    rest = " No other difference is supported." if parts and len(supported) < len(differences) else ""
    pairs = (strategies or 2) * ((strategies or 2) - 1) // 2
    how = f", p-values adjusted for all {pairs} pairs (Holm)" if pairs > 1 else ""
    shown = f" Compared is {best}, the best, with each other strategy; --all-pairs compares every pair." if best else ""
    return (
        f"On {metric}, {examples:,} distinct {split} examples support: {found}.{rest}{shown} Paired by example{how}; "
        "each strategy was trained with one seed, and what another seed would change is not in these figures."
    )
