"""Warnings of a plan: what is legal in a recipe, and probably a mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ftengine.api import Task
from ftengine.api.on_policy import is_on_policy, is_validated
from ftengine.data.augmentation_preview import idle_augmenters
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import PreparedData, held_out
from ftengine.engine.references import dropout_beside_reference
from ftengine.evaluation.plan import EvalPlan
from ftengine.evaluation.slices import as_text, is_small
from ftengine.evaluation.weights import Weights
from ftengine.run.directory import RunDirectory
from ftengine.run.unusual import unusual_options
from ftengine.text import counted, percent, untested_slices
from ftengine.training.steps import Steps

if TYPE_CHECKING:
    from torch import nn

SMALL_SPLIT = 20
"""Examples held out, below which little can be shown: the 95 % interval of a proportion of 20 is up to 44 points wide
(1.96 · √(0.25 / 20) on each side)."""
CUT_ANSWERS = 0.05
"""Share of the reference answers that are longer than answers may become, from which it is said."""
FROM_SCRATCH = 0.01
"""Learning rate up to which models are trained whose weights were drawn and never trained."""


def untested(evaluating: EvalPlan) -> Iterator[str]:
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


def cut_answers(task: Task, evaluating: EvalPlan) -> Iterator[str]:
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


def warnings_of(data: PreparedData, targets: Mapping[str, list[str]]) -> list[str]:
    """Warn about settings that are legal but probably a mistake."""
    recipe, encoded = data.ready.recipe, data.encoded
    warnings = [finding.text for finding in data.audit.findings if finding.level != "good"]
    warnings += idle_augmenters(encoded["train"])
    if not is_on_policy(data.ready.task) and "validation" not in encoded:
        warnings.append("no validation split: over-fitting cannot be detected (data.validation).")
    if is_validated(data.ready.task) and held_out(encoded) == "validation":
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


def far_from_usual(experiment: Experiment, schedule: Steps, *, untrained: bool) -> Iterator[str]:
    """Warn about settings that are far from usual; `untrained`: whether the base model never was trained."""
    if schedule.warmup >= schedule.total > 1:
        yield (
            f"train.warmup takes all {counted(schedule.total, 'step')}, so train.learning_rate is reached only at the "
            "last one. Set fewer steps, or a share below 1."
        )
    most = FROM_SCRATCH if untrained else 0.0
    for option in unusual_options(experiment.recipe, experiment.registry):
        if option.key != "train.learning_rate" or not option.low <= option.value <= most:
            yield f"{option}."


def is_untrained(module: nn.Module) -> bool:
    """Return whether no norm's weight ever moved from 1; False for a skeleton, or without norms."""
    norms = [of for name, of in module.named_parameters() if of.ndim == 1 and name.endswith("weight")]
    return bool(norms) and all(not of.is_meta and bool((of == 1).all()) for of in norms)
