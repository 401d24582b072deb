"""A recipe's consequences, without training: what `ftengine plan` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ftengine.api import BuildsSkeletons, Labels, Listener, LoadedModel, LoadRequest, Shows
from ftengine.data.augmentation_preview import before_and_after, without_effect
from ftengine.data.batching import epoch_batches, micro_batches, padding_share
from ftengine.data.encoding import EncodedSplit
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Job, described, prepare
from ftengine.engine.session import Session, held_out
from ftengine.errors import SourceError
from ftengine.evaluation.plan import EvalPlan
from ftengine.model import count, trainable
from ftengine.plugins.registry import Registry
from ftengine.run.directory import RunDirectory
from ftengine.run.recipe import Recipe
from ftengine.training.estimate import estimate
from ftengine.training.losses import SAMPLE
from ftengine.training.modes import checkpoint_gradients, frozen_parameters
from ftengine.training.schedule import Schedule, plan_steps

PLANNED_EPOCHS = 3
"""Epochs whose padding is counted exactly; later ones are alike."""


UNITS = {"text": "tokens", "image": "images"}
"""What an example's length counts, by a task's modality."""


@dataclass(frozen=True)
class Plan:
    """What a recipe would do.

    Args:
        recipe: the resolved recipe.
        model: source, loader, class, and numbers of parameters.
        targets: modules matched by each of the strategy's patterns.
        data: audit and token counts of each split.
        steps: optimiser steps, tokens, padding.
        example: one training example as (text, is trained on) pieces.
        augmented: a few training examples before and after the augmenters (`before_and_after`).
        precision: compute dtype and the reason.
        evaluation: what base and tuned model are measured on: "split", its "examples" and "evaluators", "training"
            (rows of training that are measured too), "slices" (columns) and "probes".
        estimate: expected seconds and bytes; None when not measured.
        warnings: what deserves attention, in plain words.
    """

    recipe: dict[str, Any]
    model: dict[str, Any]
    targets: dict[str, list[str]]
    data: dict[str, Any]
    steps: dict[str, Any]
    example: list[tuple[str, bool]]
    augmented: list[dict[str, Any]]
    precision: dict[str, str]
    evaluation: dict[str, Any]
    estimate: dict[str, Any] | None
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)


def plan(
    recipe: Recipe, *, measure: bool = True, listener: Listener | None = None, registry: Registry | None = None
) -> Plan:
    """Work out what a recipe would do; nothing is written.

    Args:
        recipe: the recipe.
        measure: load the weights and time a few batches; without it there is no estimate.

    Raises:
        InputError: whatever `fine_tune` would refuse, except an output folder in use (a warning here).
    """
    job = Job.open(recipe, registry, listener)
    splits = job.read_data()
    job.load_skeleton()
    encoded = job.encode(splits)
    evaluating = evaluation_plan(job, encoded, splits)
    session = Session(job)
    train = encoded["train"]
    section = recipe.train
    schedule = plan_steps(len(train), section, session.accelerator.num_processes)
    batches = _planned(train, recipe, schedule.total, session.accelerator.num_processes)
    micro = [part for batch in batches for part in micro_batches(batch, section.batch_size)]
    step_tokens = float(np.mean([train.lengths[batch].sum() for batch in batches]))
    loaded, figures = job.skeleton, None
    if measure or loaded is None:
        loaded = job.load_model()
        session.prepare(loaded)
    if measure:
        figures = _estimate(session, loaded, encoded, evaluating, schedule, step_tokens)
    trained, total = count(loaded.module)
    return Plan(
        recipe=job.resolved(),
        model={
            "source": recipe.model.source,
            "loader": job.loader.name,
            "class": type(loaded.module).__name__,
            "trainable_parameters": trained,
            "total_parameters": total,
            "new_modules": list(loaded.new_modules),
            "max_length": loaded.max_length,
            "labels": list(job.task.labels.names) if job.task.labels else None,
        },
        targets=job.targets,
        data=job.audit.model_dump(mode="json"),
        steps={
            "total": schedule.total,
            "per_epoch": schedule.per_epoch,
            "examples_a_step": section.batch_size * section.accumulate * session.accelerator.num_processes,
            "unit": UNITS.get(job.task.modality, "examples"),
            "tokens": int(step_tokens * schedule.total),
            "tokens_a_step": step_tokens,
            "padding_share": padding_share(train.lengths, micro),
            # Only where the loss is a sum over tokens; a label of a whole example has no share of its tokens.
            "label_share": None if job.task.labels else float(train.weights.sum() / train.lengths.sum()),
        },
        example=_example(train),
        augmented=before_and_after(train, batch_size=section.batch_size),
        precision={"compute": session.precision.name, "reason": session.precision.reason},
        evaluation=_evaluation(evaluating),
        estimate=figures,
        warnings=[*_warnings(recipe, job, encoded), *_never_trained(job, loaded, schedule)],
    )


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a strategy trains of a model.

    Args:
        model: source, loader, class, head and labels.
        strategy: its name and options.
        trainable_parameters, total_parameters: of the prepared model.
        base_parameters: of the model before the strategy touched it.
        new_modules: trainable parameters of each module that would be initialised afresh; they are among the
            trainable ones, and tables in papers mostly leave them out.
        patterns: for each of the strategy's patterns the number of modules it matched, their parameters, and
            how many of those train.
    """

    model: dict[str, Any]
    strategy: dict[str, Any]
    trainable_parameters: int
    total_parameters: int
    base_parameters: int
    new_modules: dict[str, int]
    patterns: dict[str, dict[str, int]]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {**asdict(self), "trainable_share": self.trainable_parameters / self.total_parameters}


def count_parameters(
    recipe: Recipe, *, labels: int = 2, listener: Listener | None = None, registry: Registry | None = None
) -> ParameterCount:
    """Count what would train, from the model's config alone: neither data nor weights nor tokenizer are needed.

    Args:
        recipe: the recipe; its data is not read.
        labels: outputs of a classification head, which the data would have told.

    Raises:
        InputError: model, task or strategy cannot be used, or a pattern matches nothing.
    """
    job = Job.open(recipe, registry, listener, check_source=False)
    task, source = job.task, recipe.model.source
    assumed = Labels("single", tuple(f"LABEL_{i}" for i in range(labels))) if _has_labels(task.head) else None
    request = LoadRequest(source, task.head, task.labels or assumed, processor=False)
    job.listener.phase("count parameters")
    build = job.loader.load_skeleton if isinstance(job.loader, BuildsSkeletons) else job.loader.load
    loaded = build(request)
    if loaded.processor is None:
        with suppress(SourceError):  # a strategy may want it, and where there is none, does without
            loaded.processor = job.loader.load_processor(source)
    _, base = count(loaded.module)
    prepare(job.strategy, loaded)
    trained, total = count(loaded.module)
    return ParameterCount(
        model={
            "source": source,
            "loader": job.loader.name,
            "class": type(loaded.module).__name__,
            "head": task.head,
            "labels": list(request.labels.names) if request.labels else None,
        },
        strategy=described(job.strategy),
        trainable_parameters=trained,
        total_parameters=total,
        base_parameters=base,
        new_modules={name: _count_below(loaded, [name])[1] for name in loaded.new_modules},
        patterns={
            pattern: dict(
                zip(
                    ("modules", "parameters", "trainable_parameters"),
                    (len(modules), *_count_below(loaded, modules)),
                    strict=True,
                )
            )
            for pattern, modules in job.strategy.matches().items()
        },
    )


def _has_labels(head: str) -> bool:
    return head.endswith("classification")


def _count_below(loaded: LoadedModel, paths: list[str]) -> tuple[int, int]:
    """Return how many parameters lie at or below some paths, and how many of them train."""
    wanted = set(paths)
    found = [
        parameter
        for name, parameter in loaded.module.named_parameters()
        if any(name[:end] in wanted for end in _ends(name))
    ]
    return sum(p.numel() for p in found), sum(p.numel() for p in found if p.requires_grad)


def _ends(name: str) -> list[int]:
    """Return where the paths of a parameter and of the modules around it end."""
    return [i for i, character in enumerate(name) if character == "."] + [len(name)]


def _planned(train: EncodedSplit, recipe: Recipe, steps: int, processes: int) -> list[np.ndarray]:
    size = recipe.train.batch_size * recipe.train.accumulate * processes
    batches: list[np.ndarray] = []
    for epoch in range(PLANNED_EPOCHS):
        batches += epoch_batches(train.lengths, size, recipe.seed, epoch)
        if len(batches) >= steps:
            break
    return batches[:steps]


def _estimate(
    session: Session,
    loaded: LoadedModel,
    encoded: dict[str, EncodedSplit],
    evaluating: EvalPlan,
    schedule: Schedule,
    step_tokens: float,
) -> dict[str, Any]:
    section = session.job.recipe.train
    if section.gradient_checkpointing:
        checkpoint_gradients(loaded.module)
    figures = estimate(
        session.accelerator,
        loaded,
        session.job.task,
        session.job.regularizers,
        encoded["train"],
        section.batch_size,
        step_tokens * schedule.total,
        _evaluated_tokens(encoded, evaluating, -(-schedule.total // (section.validate_every or schedule.per_epoch))),
    )
    return {**asdict(figures), "peak_bytes": figures.peak_bytes, "answers": 2 * _answers(evaluating)}


def _evaluated_tokens(encoded: dict[str, EncodedSplit], evaluating: EvalPlan, validations: int) -> float:
    """Return the tokens that models read in evaluation: while training, and base and tuned afterwards."""

    def tokens(split: EncodedSplit) -> float:
        return float(split.lengths.sum())

    train, validation = encoded["train"], encoded.get("validation")
    during = 0.0
    if validation is not None:
        sampled = min(len(validation), SAMPLE, len(train)) / len(train)
        during = tokens(validation) + sampled * tokens(train)
    return validations * during + 2 * sum(map(tokens, evaluating.encoded()))


def _answers(evaluating: EvalPlan) -> int:
    """Return how many answers one model writes."""
    probed = (one for probe in evaluating.probes for one in (probe.examples, probe.contrast))
    asked = [one for one in (evaluating.held_out, *probed) if one is not None and one.answering]
    return sum(len(one.answered) for one in asked)


def _evaluation(evaluating: EvalPlan) -> dict[str, Any]:
    held, training = evaluating.held_out, evaluating.training
    return {
        "split": evaluating.split,
        "examples": 0 if held is None else len(held.split),
        "evaluators": [] if held is None else [evaluator.name for evaluator in (*held.reading, *held.answering)],
        "training": 0 if training is None else len(training.split),
        "slices": [] if held is None else list(held.slices),
        "probes": [
            {
                "kind": probe.kind,
                "name": probe.name,
                "data": probe.data,
                "examples": len(probe.examples.members),
            }
            for probe in evaluating.probes
        ],
    }


def _example(train: EncodedSplit) -> list[tuple[str, bool]]:
    """Show the example of median length."""
    middle = int(np.argsort(train.lengths, kind="stable")[len(train) // 2])
    features = train.task.encode(train.rows[int(train.index[middle])], train.processor, max_length=train.max_length)
    return train.task.show(features, train.processor) if isinstance(train.task, Shows) else []


def _never_trained(job: Job, loaded: LoadedModel, schedule: Schedule) -> Iterator[str]:
    """Say which trainable parameters a strategy leaves out of every step."""
    strategy = job.tried if loaded is job.skeleton and job.tried is not None else job.strategy
    if frozen := len(frozen_parameters(strategy, loaded.module, schedule.total - 1, schedule)):
        yield (
            f"{frozen} of {len(trainable(loaded.module))} trainable tensors stay frozen for all {schedule.total} steps."
        )


def _warnings(recipe: Recipe, job: Job, encoded: dict[str, EncodedSplit]) -> list[str]:
    """Say what is legal but probably not meant."""
    found = [finding.text for finding in job.audit.findings if finding.level != "good"]
    found += [
        f"augmenter {name!r} changes nothing that the model reads in the training examples that were sampled (their "
        "first epoch)."
        for name in without_effect(encoded["train"])
    ]
    if "validation" not in encoded:
        found.append("no validation split: over-fitting will not be seen (data.validation).")
    if held_out(encoded) == "validation":
        found.append("no test split: base and tuned are compared on validation, which also picks the best weights.")
    output = RunDirectory(recipe.output)
    if output.path.is_dir() and any(output.path.iterdir()):
        found.append(f"output {recipe.output!r} is not empty; train will refuse it.")
    matched = Counter(module for modules in job.targets.values() for module in modules)
    reused = [module for module, times in matched.items() if times > 1]
    if reused:
        found.append(f"{len(reused)} modules are matched by more than one pattern, e.g. {reused[0]!r}.")
    return found
