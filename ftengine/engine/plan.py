"""Planning a run without training: what `ftengine plan` shows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ftengine.api import Listener, LoadedModel, Strategy, Task
from ftengine.api.on_policy import is_on_policy
from ftengine.api.task_sorts import reference_keys
from ftengine.chat.template_date import template_date
from ftengine.data.augmentation_preview import before_and_after
from ftengine.data.batching import micro_batches, padding_share
from ftengine.data.encoding import EncodedSplit
from ftengine.engine.drawing_plan import draw_step, drawing_faults, drawing_seconds
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Experiment
from ftengine.engine.fast_paths import fast_paths_of, require_fast_paths
from ftengine.engine.memory import choose_memory, measures, trial_of
from ftengine.engine.plan_warnings import cut_answers, far_from_usual, is_untrained, untested, warnings_of
from ftengine.engine.prepared_data import PreparedData, check_own_regularizers, prepare_data
from ftengine.engine.prepared_model import load_base, prepare_strategy
from ftengine.engine.references import without_reference
from ftengine.engine.shared_base import trains_base
from ftengine.evaluation.plan import EvalPlan
from ftengine.model import count
from ftengine.parallel.device import Device
from ftengine.parallel.scaling import Scale, advice, communication, sizes_up_to
from ftengine.plugins.attribution import matched
from ftengine.plugins.registry import Registry
from ftengine.run.recipe import Recipe
from ftengine.text import counted
from ftengine.training.estimate import GRADIENT_BYTES, Trial, estimate, planned_batches
from ftengine.training.losses import SAMPLE
from ftengine.training.modes import checkpoint_gradients, never_trained
from ftengine.training.steps import Steps, batch_tokens, plan_steps


@dataclass(frozen=True)
class Plan:
    """What a recipe would do.

    Args:
        recipe: the resolved recipe.
        model: source, loader, class, and numbers of parameters.
        targets: modules matched by each of the strategy's patterns.
        notes: the strategy's and the task's own facts about what trains.
        data: audit and token counts of each split.
        steps: optimiser steps, tokens, padding.
        examples: one training example of each kind: "kind" ("" where the task tells none), "place", and "pieces",
            (text, is trained on); first of them the one of median length.
        unread: columns of the training data that nothing reads.
        augmented: a few training examples before and after the augmenters (`before_and_after`).
        precision: compute dtype and the reason.
        evaluation: "split", its "examples", "groups" of them ("column" and "count"; None where rows have none) and
            "evaluators", "training" (rows of training that are measured too), "slices" (columns) and "probes".
        estimate: expected seconds and bytes; None when not measured.
        drawing: of an on-policy task, figures of the answers to one step's prompts, drawn from the model before
            training; None when not measured.
        seeds: of several seeds, the number of "runs", the "first" seed, "seconds" of all (None when not measured) and
            how often the base is read ("base_reads"); None for one.
        scaling: a step on 1, 2, 4, … processes ("scales"), the "bandwidth" in bytes a second, and the bottleneck
            ("advice"); None if not requested.
        date: the date that the model's chat template writes, as 2026-02-28; None if it writes none.
        warnings: warnings in plain words.
    """

    recipe: dict[str, Any]
    model: dict[str, Any]
    targets: dict[str, list[str]]
    notes: list[str]
    data: dict[str, Any]
    steps: dict[str, Any]
    examples: list[dict[str, Any]]
    unread: list[str]
    augmented: list[dict[str, Any]]
    precision: dict[str, str]
    evaluation: dict[str, Any]
    estimate: dict[str, Any] | None
    drawing: dict[str, float] | None
    seeds: dict[str, Any] | None
    scaling: dict[str, Any] | None
    date: str | None
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)


def plan(
    recipe: Recipe,
    *,
    measure: bool = True,
    processes: int | None = None,
    bandwidth: float | None = None,
    listener: Listener | None = None,
    registry: Registry | None = None,
) -> Plan:
    """Determine what a recipe would do; nothing is written.

    Args:
        recipe: the recipe.
        measure: load the weights and time a few batches; without it there is no estimate.
        processes, bandwidth: a number of processes for which scaling is worked out from the estimate, and bytes a
            second of the slowest link between two of them; both or neither.

    Raises:
        InputError: everything that `fine_tune` would raise, except an output folder in use (a warning here).
    """
    experiment = Experiment.open(recipe, registry, listener)
    data = prepare_data(experiment)
    evaluating, device = evaluation_plan(data), Device.open(recipe)
    train = data.encoded["train"]
    schedule = plan_steps(len(train), recipe.train, device.accelerator.num_processes)
    check_own_regularizers(data.ready, schedule.total)
    busy = _busy() if measure else None
    loaded, strategy = _prepared(data, device, measure)
    notes, noted = _notes(data.ready.task, strategy, loaded)
    frozen, targets = never_trained(strategy, loaded.module, schedule), matched(strategy)
    untrained = is_untrained(loaded.module)  # before steps that are timed change the weights
    drawn = draw_step(data, device, loaded, schedule) if measure else None
    faults = [*drawing_faults(data, loaded, drawn)]  # as above
    figures = _estimate(data, device, loaded, strategy, evaluating, schedule, drawn) if measure else None
    return Plan(
        recipe=experiment.resolved(),
        model=_model(data, loaded),
        targets=targets,
        notes=notes,
        data=data.audit.model_dump(mode="json"),
        steps=_steps(data, device, schedule),
        examples=_examples(train),
        unread=[name for name in train.rows.columns if name in data.audit.encoded["train"]["unread"]],
        augmented=before_and_after(train, batch_size=recipe.train.batch_size),
        precision={"compute": device.precision.name, "reason": device.precision.reason},
        evaluation=_evaluation(evaluating, recipe.data.group_column),
        estimate=figures,
        drawing=drawn,
        seeds=_seeds(data, loaded, figures),
        scaling=_scaling(recipe, figures, schedule, len(train), processes, bandwidth),
        date=str(day) if (day := template_date(data.ready.processor)) else None,
        warnings=[
            *far_from_usual(experiment, schedule, untrained=untrained),
            *noted,
            *warnings_of(data, targets),
            *untested(evaluating),
            *cut_answers(data.ready.task, evaluating),
            *(f"{sentence}." for sentence in (*faults, frozen, busy) if sentence),
        ],
    )


def _notes(task: Task, strategy: Strategy, loaded: LoadedModel) -> tuple[list[str], list[str]]:
    """Return facts and warnings of a strategy and a task about the prepared model."""
    (facts, warnings), (more_facts, more_warnings) = strategy.notes(loaded), task.notes(loaded, strategy)
    return [*facts, *more_facts], [*warnings, *more_warnings]


def _prepared(data: PreparedData, device: Device, measure: bool) -> tuple[LoadedModel, Strategy]:
    """Return the model that the strategy prepared: with its weights if something is measured, else a skeleton."""
    if data.ready.skeleton is not None and not measure:
        return data.ready.skeleton.loaded, data.ready.skeleton.strategy
    require_fast_paths(device, data.experiment)
    loaded = load_base(data.ready)
    return loaded, prepare_strategy(device, data.ready, loaded)


def _model(data: PreparedData, loaded: LoadedModel) -> dict[str, Any]:
    trained, total = count(loaded.module)
    labels = data.ready.task.labels
    return {
        "source": data.ready.recipe.model.source,
        "loader": data.experiment.loader.name,
        "class": type(loaded.module).__name__,
        "trainable_parameters": trained,
        "total_parameters": total,
        "new_modules": list(loaded.new_modules),
        "max_length": loaded.max_length,
        "labels": list(labels.names) if labels else None,
    }


def _steps(data: PreparedData, device: Device, planned: Steps) -> dict[str, Any]:
    recipe, train, task = data.ready.recipe, data.encoded["train"], data.ready.task
    batches = planned_batches(train, recipe.training_seed, planned)
    size, most = recipe.train.batch_size, batch_tokens(recipe.train, device.accelerator.device)
    micro = [part for batch in batches for part in micro_batches(batch, size, lengths=train.lengths, tokens=most)]
    tokens = float(np.mean([train.lengths[batch].sum() for batch in batches]))
    tokens *= task.answers_per_row if is_on_policy(task) else 1
    return {
        "total": planned.total,
        "per_epoch": planned.per_epoch,
        "examples_a_step": planned.batch,
        "answers_a_row": task.answers_per_row if is_on_policy(task) else None,
        "unit": task.traits.unit,
        "tokens": int(tokens * planned.total),
        "tokens_a_step": tokens,
        "padding_share": padding_share(train.lengths, micro),
        # Only where the loss is a sum over tokens; what counts once, whole, has no share of its tokens.
        "label_share": float(train.weights.sum() / train.lengths.sum())
        if {"loss", "tokens"} <= task.predicts
        else None,
    }


def _computed_share(trial: Trial) -> float | None:
    """Return how many tokens the model computes per token in the rows; None: all tokens and their padding."""
    if not trial.fast_paths.compute_fewer_tokens:
        return None
    return sum(trial.sizes) / sum(int(trial.train.lengths[members].sum()) for members in trial.batches)


def _estimate(
    data: PreparedData,
    device: Device,
    loaded: LoadedModel,
    strategy: Strategy,
    evaluating: EvalPlan,
    planned: Steps,
    drawn: Mapping[str, float] | None,
) -> dict[str, Any]:
    section = data.ready.recipe.train
    without_reference(data.ready, data.encoded["train"])
    fast_paths = fast_paths_of(data, device, loaded, strategy, planned)
    memory = choose_memory(data, device, loaded, strategy, planned, fast_paths)
    if memory.gradient_checkpointing:
        checkpoint_gradients(loaded.module)
    data.experiment.listener.phase("time batches")
    every = section.validate_every or planned.per_epoch * planned.epochs_between
    validations = -(-planned.total // every)
    trial = trial_of(data, device, loaded, strategy, planned, fast_paths)
    share = _computed_share(trial)
    evaluated = _evaluated_tokens(data.encoded, evaluating, validations)
    if reference_keys(data.ready.task):
        evaluated += sum(float(split.lengths.sum()) for name, split in data.encoded.items() if name != "test")
    figures = estimate(trial, evaluated)
    return {
        **asdict(figures),
        **({} if drawn is None else drawing_seconds(data, figures, drawn, planned, validations)),
        "gradient_bytes": GRADIENT_BYTES * count(loaded.module)[0],
        "answers": 2 * _answers(evaluating),
        "memory": memory.reason if measures(section) else None,
        "computed_share": share,
    }


BUSY = "the machine is busy"


def _busy() -> str | None:
    """Warn if other programs keep the machine so busy that timings are too long."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= cores:
        return None
    return (
        f"{BUSY} (load average {load:.1f} on {counted(cores, 'core')}): these times were measured "
        "under load, and are shorter on a quiet machine"
    )


def _seeds(data: PreparedData, loaded: LoadedModel, figures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    recipe, skeleton = data.ready.recipe, data.ready.skeleton
    if (runs := recipe.train.seeds) == 1:
        return None
    own = skeleton is None or trains_base(loaded, skeleton.trained_base)  # and then read to check what was saved
    seconds = None if figures is None else runs * (figures["train_seconds"] + figures["evaluate_seconds"])
    reads = 2 * runs if own else runs if loaded.new_modules else 1
    return {"runs": runs, "first": recipe.training_seed, "seconds": seconds, "base_reads": reads}


def _scaling(
    recipe: Recipe,
    figures: Mapping[str, Any] | None,
    planned: Steps,
    examples: int,
    processes: int | None,
    bandwidth: float | None,
) -> dict[str, Any] | None:
    if figures is None or processes is None or bandwidth is None:
        return None
    section = recipe.train
    compute = figures["train_seconds"] / planned.total
    scales = []
    for number in sizes_up_to(processes):
        steps = plan_steps(examples, section, number)
        spent, exposed = communication(number, figures["gradient_bytes"], bandwidth, figures["backward_seconds"])
        scales.append(Scale(number, steps.batch, steps.total, compute, spent, exposed))
    sentence = advice(scales, section.accumulate, examples, bandwidth)
    return {"bandwidth": bandwidth, "scales": [scale.to_json() for scale in scales], "advice": sentence}


def _evaluated_tokens(encoded: Mapping[str, EncodedSplit], evaluating: EvalPlan, validations: int) -> float:
    """Return the tokens read in evaluation: during training, and by the base and the tuned model."""

    def tokens(split: EncodedSplit) -> float:
        return float(split.lengths.sum())

    train, validation = encoded["train"], encoded.get("validation")
    during = 0.0
    if validation is not None and not is_on_policy(train.task):
        sampled = min(len(validation), SAMPLE, len(train)) / len(train)
        during = tokens(validation) + sampled * tokens(train)
    return validations * during + 2 * sum(map(tokens, evaluating.encoded()))


def _answers(evaluating: EvalPlan) -> int:
    """Return the number of answers that one model writes."""
    return sum(len(eval_set.answered) for eval_set in evaluating.sets())


def _evaluation(evaluating: EvalPlan, column: str | None) -> dict[str, Any]:
    held, training = evaluating.held_out, evaluating.training
    groups = None
    if held is not None and column is not None and held.split.groups is not None:
        groups = {"column": column, "count": len(np.unique(held.split.groups[held.members]))}
    return {
        "split": evaluating.split,
        "examples": 0 if held is None else len(held.split),
        "groups": groups,
        "evaluators": [] if held is None else [evaluator.name for evaluator in (*held.reading, *held.answering)],
        "training": 0 if training is None else len(training.split),
        "slices": [] if held is None else list(held.slices),
        "probes": [
            {"kind": probe.kind, "name": probe.name, "data": probe.data, "examples": len(probe.examples.members)}
            for probe in evaluating.probes
        ]
        + [
            {"kind": "benchmark", "name": benchmark.asker.name, "data": benchmark.data, "examples": None}
            for benchmark in evaluating.benchmarks
        ],
    }


def _examples(train: EncodedSplit) -> list[dict[str, Any]]:
    """Return the example of median length, and the first one of each other kind."""
    middle = int(train.index[int(np.argsort(train.lengths, kind="stable")[len(train) // 2])])
    examples: dict[str, dict[str, Any]] = {}
    for row in (middle, *train.facts.kinds.values()):
        features = train.features(row)
        pieces = train.task.decode_example(features, train.processor)
        kind = features.kind
        if pieces and kind not in examples:
            examples[kind] = {"kind": kind, "place": train.rows.where(row), "pieces": pieces}
    return list(examples.values())
