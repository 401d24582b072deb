"""Choosing gradient checkpointing, so that a run stays within `train.memory_limit`."""

from __future__ import annotations

import math

import torch
from accelerate.utils import broadcast_object_list

from ftengine.api import LoadedModel, Strategy
from ftengine.api.on_policy import is_on_policy
from ftengine.engine.prepared_data import PreparedData
from ftengine.errors import RecipeError
from ftengine.generation import drawing_bytes
from ftengine.model import state_tensors
from ftengine.parallel.device import Device
from ftengine.run.directory import RunDirectory
from ftengine.run.recipe import TrainSection
from ftengine.run.records import Environment, Memory
from ftengine.text import size
from ftengine.training.estimate import Trial
from ftengine.training.fast_paths import FastPaths
from ftengine.training.memory import available_bytes, held_bytes, release_memory
from ftengine.training.modes import can_checkpoint_gradients, checkpoint_gradients
from ftengine.training.optimizer_step import groups_of
from ftengine.training.regularizing import Attached, own_regularizers
from ftengine.training.steps import Steps, batch_tokens


def measures(section: TrainSection) -> bool:
    """Return whether the recipe requires measuring memory before training."""
    return section.gradient_checkpointing == "auto" or section.memory_limit is not None


def require_measurable(device: Device, section: TrainSection) -> None:
    """Raise RecipeError if memory is to be measured for a model that is sharded over processes."""
    if device.divides and measures(section):
        raise RecipeError(
            "train.parallel fsdp excludes train.gradient_checkpointing auto and train.memory_limit, which "
            "measure a whole model. Set gradient_checkpointing to true or false, and no memory_limit."
        )


def require_base_fits(device: Device, section: TrainSection) -> None:
    """Raise RecipeError if `train.memory_limit` is below what the process uses with the base loaded."""
    held, limit = held_bytes(device.accelerator.device), section.memory_limit
    if limit is not None and held > limit:
        raise RecipeError(
            f"the model and its libraries alone hold {size(held)} of memory, more than the train.memory_limit of "
            f"{size(limit)}. Training takes more still: without a limit, `ftengine plan` says "
            "how much."
        )


def choose_memory(
    data: PreparedData,
    device: Device,
    loaded: LoadedModel,
    strategy: Strategy,
    steps: Steps,
    fast_paths: FastPaths,
    resumed: RunDirectory | None = None,
) -> Memory:
    """Choose whether to use gradient checkpointing, by the main process; a resumed run keeps its choice.

    Raises:
        RecipeError: training needs more than `train.memory_limit`.
    """
    section, listener = data.ready.recipe.train, data.experiment.listener
    before = None if resumed is None else Environment.read(resumed).memory
    if before is not None or not measures(section):
        return before or Memory(
            gradient_checkpointing=section.gradient_checkpointing is True, reason="the recipe says it"
        )
    listener.phase("measure memory")
    release_memory()  # what measuring the base left behind is no part of what the model holds
    require_base_fits(device, section)
    fit = fit_memory(trial_of(data, device, loaded, strategy, steps, fast_paths), section) if device.is_main else None
    (fit,) = broadcast_object_list([fit])
    assert fit is not None
    listener.message(fit.reason)
    return fit


def trial_of(
    data: PreparedData, device: Device, loaded: LoadedModel, strategy: Strategy, steps: Steps, fast_paths: FastPaths
) -> Trial:
    """Return a trial that runs a prepared model on micro-batches of its training."""
    experiment, section = data.experiment, data.ready.recipe.train
    return Trial(
        device.accelerator,
        loaded,
        data.ready.task,
        [*own_regularizers(strategy, steps.total), *(make() for make in experiment.make_regularizers)],
        data.encoded["train"],
        section,
        experiment.recipe.training_seed,
        steps,
        experiment.make_optimizer(),
        groups_of(strategy, loaded.module, section),
        fast_paths,
        _beside(data, device, loaded, steps),
    )


def _beside(data: PreparedData, device: Device, loaded: LoadedModel, steps: Steps) -> tuple[int, int]:
    """Return the bytes that an on-policy task holds in training, and those that drawing takes beyond them."""
    task, accelerator = data.ready.task, device.accelerator
    if not is_on_policy(task):
        return 0, 0
    trained = state_tensors(loaded.module).values() if task.uses_reference else ()
    copied, each = sum(tensor.numel() * tensor.element_size() for tensor in trained), task.answers_per_row
    answers, longest = -(-steps.batch // accelerator.num_processes) * each, int(data.encoded["train"].lengths.max())
    with accelerator.autocast():
        drawing = drawing_bytes(loaded, answers, each, task.answer_tokens, longest)
    return copied, copied + drawing  # the model as it is is copied too, while its reference computes


def fit_memory(trial: Trial, section: TrainSection) -> Memory:
    """Measure training's memory, and turn on gradient checkpointing where only that stays within the limit.

    Raises:
        RecipeError: training needs more than the limit either way.
    """
    free = available_bytes(trial.accelerator.device)
    most = min(section.memory_limit or free, free)
    limited = most == section.memory_limit
    what = f"train.memory_limit of {size(most)}" if limited else f"{size(most)} that are free"
    able = can_checkpoint_gradients(trial.loaded.module)
    choices = {"auto": [False, True] if able else [False]}.get(str(section.gradient_checkpointing))
    peaks: list[float] = []
    for twice in choices or [section.gradient_checkpointing is True]:
        if twice:
            checkpoint_gradients(trial.loaded.module)
        with trial.attached() as attached:
            peaks.append(_peak(trial, attached, most))
        if (peak := peaks[-1]) <= most:
            how = "with" if twice else "without"
            but = f" (without it, {_size_of(peaks[0])})" if len(peaks) > 1 else ""
            reason = f"{how} gradient checkpointing: expected peak {size(peak)}{but}, of {what}"
            return Memory(gradient_checkpointing=twice, reason=reason, peak_bytes=int(peak), limit_bytes=most)
    tried = f", {_size_of(peaks[1])} with gradient checkpointing" if len(peaks) > 1 else ""
    other = ", set train.gradient_checkpointing to auto" if able and section.gradient_checkpointing is False else ""
    would = f"training would take {_size_of(peaks[0])} of memory{tried}, more than the {what}"
    more = ", or raise train.memory_limit" if limited else ""
    # Where tokens cut the largest micro-batch, fewer examples may change nothing.
    cut = len(trial.batches[-1]) < min(section.batch_size, len(trial.train))
    tokens = batch_tokens(section, trial.accelerator.device)
    first = f"train.batch_tokens ({tokens:,} here), or " if cut and tokens else ""
    raise RecipeError(
        f"{would}. Lower {first}train.batch_size (and raise train.accumulate), shorten the task's max_length{other}"
        f"{more}."
    )


def _peak(trial: Trial, attached: Attached, most: int) -> float:
    """Return the peak bytes of training; infinity where the device runs out of memory while measuring."""
    try:
        held, peak = trial.memory(attached, most)
        return peak + trial.drawing(held, peak)
    except torch.OutOfMemoryError:
        trial.loaded.module.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return math.inf


def _size_of(peak: float) -> str:
    return "more than there is" if math.isinf(peak) else size(int(peak))
