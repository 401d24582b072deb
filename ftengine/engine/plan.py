"""Planning a run without training: what `ftengine plan` shows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ftengine.api import Listener, LoadedModel, Strategy, Task
from ftengine.api.task_sorts import reference_keys
from ftengine.chat.template_date import template_date
from ftengine.data.augmentation_preview import before_and_after, idle_augmenters
from ftengine.data.batching import micro_batches, padding_share
from ftengine.data.encoding import EncodedSplit
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Experiment
from ftengine.engine.fast_paths import fast_paths_of, require_fast_paths
from ftengine.engine.memory import choose_memory, measures, trial_of
from ftengine.engine.prepared_data import PreparedData, check_own_regularizers, held_out, prepare_data
from ftengine.engine.prepared_model import load_base, prepare_strategy
from ftengine.engine.references import dropout_beside_reference, without_reference
from ftengine.evaluation.plan import EvalPlan
from ftengine.evaluation.slices import as_text, is_small
from ftengine.evaluation.weights import Weights
from ftengine.model import count
from ftengine.parallel.device import Device
from ftengine.parallel.scaling import Scale, advice, communication, sizes_up_to
from ftengine.plugins.attribution import matched
from ftengine.plugins.registry import Registry
from ftengine.run.directory import RunDirectory
from ftengine.run.recipe import Recipe, TrainSection
from ftengine.text import counted, percent, untested_slices
from ftengine.training.estimate import GRADIENT_BYTES, Trial, estimate, planned_batches
from ftengine.training.losses import SAMPLE
from ftengine.training.modes import checkpoint_gradients, never_trained
from ftengine.training.steps import Steps, batch_tokens, plan_steps

UNITS = {"text": "tokens", "image": "images"}
"""What an example's length counts, by a task's modality."""

SMALL_SPLIT = 20
"""Examples held out, below which little can be shown: the 95 % interval of a proportion of 20 is up to 44 points wide
(1.96 · √(0.25 / 20) on each side)."""
CUT_ANSWERS = 0.05
"""Share of the reference answers that are longer than answers may become, from which it is said."""


@dataclass(frozen=True)
class Plan:
    """What a recipe would do.

    Args:
        recipe: the resolved recipe.
        model: source, loader, class, and numbers of parameters.
        targets: modules matched by each of the strategy's patterns.
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
        scaling: a step on 1, 2, 4, … processes ("scales"), the "bandwidth" in bytes a second, and what limits
            ("advice"); None where that was not asked for.
        date: the date that the model's chat template writes, as 2026-02-28; None if it writes none.
        warnings: what deserves attention, in plain words.
    """

    recipe: dict[str, Any]
    model: dict[str, Any]
    targets: dict[str, list[str]]
    data: dict[str, Any]
    steps: dict[str, Any]
    examples: list[dict[str, Any]]
    unread: list[str]
    augmented: list[dict[str, Any]]
    precision: dict[str, str]
    evaluation: dict[str, Any]
    estimate: dict[str, Any] | None
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
    steps = _steps(data, device, schedule)
    busy = _busy() if measure else None
    if data.ready.skeleton is None or measure:
        require_fast_paths(device, data.experiment)
        loaded = load_base(data.ready)
        strategy = prepare_strategy(device, data.ready, loaded)
    else:
        loaded, strategy = data.ready.skeleton.loaded, data.ready.skeleton.strategy
    frozen = never_trained(strategy, loaded.module, schedule)
    targets = matched(strategy)
    figures = _estimate(data, device, loaded, strategy, evaluating, schedule) if measure else None
    return Plan(
        recipe=experiment.resolved(),
        model=_model(data, loaded),
        targets=targets,
        data=data.audit.model_dump(mode="json"),
        steps=steps,
        examples=_examples(train),
        unread=[name for name in train.rows.columns if name in data.audit.encoded["train"]["unread"]],
        augmented=before_and_after(train, batch_size=recipe.train.batch_size),
        precision={"compute": device.precision.name, "reason": device.precision.reason},
        evaluation=_evaluation(evaluating, recipe.data.group_column),
        estimate=figures,
        scaling=_scaling(recipe, figures, schedule, len(train), processes, bandwidth),
        date=str(day) if (day := template_date(data.ready.processor)) else None,
        warnings=[
            *_settings(recipe.train, schedule),
            *_warnings(data, targets),
            *_untested(evaluating),
            *_cut_answers(data.ready.task, evaluating),
            *(f"{sentence}." for sentence in (frozen, busy) if sentence),
        ],
    )


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
    batches = planned_batches(train, recipe.seed, planned)
    size, most = recipe.train.batch_size, batch_tokens(recipe.train, device.accelerator.device)
    micro = [part for batch in batches for part in micro_batches(batch, size, lengths=train.lengths, tokens=most)]
    tokens = float(np.mean([train.lengths[batch].sum() for batch in batches]))
    return {
        "total": planned.total,
        "per_epoch": planned.per_epoch,
        "examples_a_step": planned.batch,
        "unit": UNITS.get(task.modality, "examples"),
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
        "gradient_bytes": GRADIENT_BYTES * count(loaded.module)[0],
        "answers": 2 * _answers(evaluating),
        "memory": memory.reason if measures(section) else None,
        "computed_share": share,
    }


def _busy() -> str | None:
    """Warn if other programs keep the machine so busy that timings are too long."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= cores:
        return None
    return (
        f"the machine is busy (load average {load:.1f} on {counted(cores, 'core')}): these times were measured "
        "under load, and are shorter on a quiet machine"
    )


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
    if validation is not None:
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


def _untested(evaluating: EvalPlan) -> Iterator[str]:
    """Warn about columns of which no slice is large enough to be tested."""
    held = evaluating.held_out
    if held is None:
        return
    index = held.split.index[held.members]
    duplicates, groups = held.split.duplicates, held.split.groups
    duplicate, group = (index if equal is None else equal[held.members] for equal in (duplicates, groups))
    for column in held.slices:
        values = [as_text(held.split.rows[int(i)].get(column)) for i in index]
        codes = np.unique(values, return_inverse=True)[1]
        members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        parts = [Weights(group[some], 0, 0, duplicates=duplicate[some]) for some in members]
        if all(is_small(part, evaluating.small_slice) for part in parts):
            grouped = len(np.unique(group)) < len(np.unique(duplicate))
            of = counted(len(parts), "value")
            yield untested_slices(column, of, len(index), evaluating.small_slice, grouped=grouped)


def _cut_answers(task: Task, evaluating: EvalPlan) -> Iterator[str]:
    """Warn if reference answers are longer than the most tokens that a model may generate.

    Lengths are the tokens that count in the loss, of rows with one answer, minus the token that ends it.
    """
    held = evaluating.held_out
    longest = None if held is None else held.options.get("max_new_tokens")
    if held is None or longest is None:
        return
    targets = [task.view(held.split.rows[int(i)]).target for i in held.split.index[held.answered]]
    single = [isinstance(target, str) or (isinstance(target, list) and len(target) == 1) for target in targets]
    tokens = held.split.weights[held.answered][np.array(single, dtype=bool)]
    cut = int((tokens > longest + 1).sum())
    if cut and cut >= CUT_ANSWERS * len(tokens):
        yield (
            f"{cut:,} of {counted(len(tokens), 'reference answer')} ({percent(cut / len(tokens))}) are longer than "
            f"the {longest:,} tokens at which the model's answers are cut, the longest {int(tokens.max()) - 1:,}: "
            "raise evaluation.generate.max_new_tokens."
        )


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


def _warnings(data: PreparedData, targets: Mapping[str, list[str]]) -> list[str]:
    """Warn about settings that are legal but probably a mistake."""
    recipe, encoded = data.ready.recipe, data.encoded
    warnings = [finding.text for finding in data.audit.findings if finding.level != "good"]
    warnings += idle_augmenters(encoded["train"])
    if "validation" not in encoded:
        warnings.append("no validation split: over-fitting cannot be detected (data.validation).")
    if held_out(encoded) == "validation":
        warnings.append(
            "no test split (data.test): base and tuned are compared on validation, which also picks the best weights."
        )
    for name, split in encoded.items():
        if name != "train" and len(split) < SMALL_SPLIT:
            warnings.append(
                f"the {name} split has {counted(len(split), 'example')}, too few to tell much by: hold out more "
                f"(data.{name}), or train on folds (ftengine cross-validate)."
            )
    output = RunDirectory(recipe.output)
    if output.path.is_dir() and any(output.path.iterdir()):
        warnings.append(f"output {recipe.output!r} is not empty; train will refuse it.")
    matched = Counter(module for modules in targets.values() for module in modules)
    reused = [module for module, times in matched.items() if times > 1]
    if reused:
        warnings.append(f"{len(reused)} modules are matched by more than one pattern, e.g. {reused[0]!r}.")
    return [*warnings, *(f"{noise}." for noise in [dropout_beside_reference(data.ready)] if noise)]


def _settings(train: TrainSection, schedule: Steps) -> Iterator[str]:
    """Warn about settings that are far from usual."""
    if schedule.warmup >= schedule.total > 1:
        yield (
            f"train.warmup takes all {counted(schedule.total, 'step')}, so train.learning_rate is reached only at the "
            "last one. Set fewer steps, or a share below 1."
        )
    if train.weight_decay > 1:
        yield (
            f"train.weight_decay is {train.weight_decay:g}; 0 to 0.1 are usual, and above 1 weights shrink faster than "
            "they learn."
        )
