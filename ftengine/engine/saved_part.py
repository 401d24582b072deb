"""Saving the trained part, reopening it on a fresh base, and comparing it with the tuned model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftengine.api import Batch, Listener, LoadedModel, Strategy, Task
from ftengine.api.task_sorts import reference_keys
from ftengine.engine.experiment import described
from ftengine.engine.prepared_data import LabelledTask
from ftengine.engine.prepared_model import PreparedModel, load_base_of, prepare_strategy
from ftengine.equivalence import OUTPUTS, ROUNDINGS, differing, distance, rounding, row_distances
from ftengine.errors import RunError, SavedPartDiffers
from ftengine.identity import file_hashes
from ftengine.identity.base import tensor_hashes
from ftengine.model import Criterion, copy_into, is_pretrained, read_tensors, save_tensors, seeded, state_tensors
from ftengine.model.in_float32 import HALVES, in_float32
from ftengine.model.parameters import frozen_tensors
from ftengine.model.saving import add_calibration, load_part, save_part, save_processor, write_calibration
from ftengine.parallel.device import Device, to_device
from ftengine.plugins.attribution import cause_in
from ftengine.run.directory import SIDECAR, TRAINED, RunDirectory, flush, write_folder, writing
from ftengine.run.environment import versions
from ftengine.run.records import TrainedPart
from ftengine.run.seal import require_saved
from ftengine.text import cut_middle, number, one_line
from ftengine.training.losses import loss_of
from ftengine.training.memory import release_memory

NEW_MODULES = "new_modules.safetensors"
"""Modules that were newly initialised, where the strategy's own files do not hold them."""

EXAMPLES = 4
"""Examples, as far apart as the split allows, on which the tuned model and the reopened one are compared."""

KEPT_OUTPUTS = 1 << 22
"""Numbers at most that are compared: 32 MiB. A language model's logits for long texts are many more."""

TF32_EPS = 2.0**-10
"""Rounding error of float32 convolutions on NVIDIA GPUs, which torch computes in TF32."""

REPAIRED = "Once the strategy is repaired, the same command with --resume"

LONGEST_REASON = 500
"""Characters of an error that are kept beside a trained part that was not checked."""

Tensors = Mapping[str, Tensor]


def save_trained_part(model: PreparedModel, loaded: LoadedModel, run: RunDirectory) -> None:
    """Write the trained part, its processor and ftengine's record of it, marked as not checked yet.

    Args:
        loaded: the complete tuned model.

    Raises:
        SavedPartDiffers: the strategy cannot save it; no trained part was written.
        RunError: a file cannot be written.
    """
    model.experiment.listener.phase("save")
    strategy, task = model.strategy, model.data.ready.task
    facts = TrainedPart(
        ftengine=versions()["ftengine"],
        base={"source": loaded.source, **loaded.fingerprint},
        strategy={"name": strategy.name, **strategy.loading_options()},
        task=described(task),
        labels=task.labels,
        new_modules=tuple(loaded.new_modules),
        uncalibrated="the run ended before that",
        check="pending",
        unchecked="the run ended before its check",
    )
    write_calibration(loaded.module, {})

    def fill(folder: Path) -> None:
        try:
            save_part(strategy, loaded, folder)
        except (OSError, RunError):  # errors of the file system keep their own message
            raise
        # Strategies are third-party code and raise anything.
        except Exception as error:
            raise SavedPartDiffers(
                f"{_who(model)} cannot save what it trained: {cause_in(strategy, error)}. No {TRAINED}/ was written; "
                f"the checkpoints are kept in {str(run.checkpoints)!r}. {REPAIRED} goes on from the last one."
            ) from error
        save_processor(loaded.processor, folder)
        configure(task, loaded, folder)
        facts.write(RunDirectory(folder))

    write_folder(run.trained, fill)


def keep_calibration(loaded: LoadedModel, run: RunDirectory, calibration: Mapping[str, Any], reason: str) -> None:
    """Add the task's calibration to a trained part, or the reason why there is none."""
    write_calibration(loaded.module, calibration)
    add_calibration(loaded.module, run.trained)
    folder = RunDirectory(run.trained)
    facts = TrainedPart.read(folder)
    facts.model_copy(update={"calibration": dict(calibration), "uncalibrated": reason}).write(folder)


@contextmanager
def marking_unchecked(run: RunDirectory, listener: Listener) -> Iterator[None]:
    """If an error ends the run before its trained part is checked, record the reason with the part."""
    try:
        yield
    except BaseException as error:
        if run.unchecked:
            what = cut_middle(one_line(str(error)), LONGEST_REASON) or "it was interrupted"
            failed = isinstance(error, SavedPartDiffers)
            reason = what if failed else f"before its check, the run ended by {type(error).__name__}: {what}"
            update = {"check": "failed" if failed else "pending", "unchecked": reason}
            with suppress(RunError):  # the disk may be full; the first error is reported
                folder = RunDirectory(run.trained)
                TrainedPart.read(folder).model_copy(update=update).write(folder)
        listener.message(
            f"training is complete: {run.path} keeps the trained part{' (not checked)' if run.unchecked else ''}, and "
            "the predictions and figures that were written; --resume continues without training again"
        )
        raise


def configure(task: Task, loaded: LoadedModel, folder: Path) -> None:
    """Let the task add its settings to a folder that holds a whole model."""
    if is_pretrained(folder):
        task.write_config(loaded, folder)


def load_trained_part(strategy: Strategy, loaded: LoadedModel, folder: Path) -> None:
    """Load a trained part, with its new modules, into a model that the strategy has prepared.

    Raises:
        BaseMismatch, RunError: the files do not fit the model, cannot be read, or have changed.
    """
    require_saved(Path(folder))
    load_part(strategy, loaded, folder)
    if (Path(folder) / NEW_MODULES).is_file():
        _load_new_modules(loaded, Path(folder) / NEW_MODULES)


def _load_new_modules(loaded: LoadedModel, file: Path) -> None:
    stored, own = read_tensors(file), _new_tensors(loaded)
    copy_into({name: own[name] for name in own.keys() & stored.keys()}, stored, str(file))


def check_trained_part(model: PreparedModel, run: RunDirectory) -> None:
    """Open the trained part on a newly loaded base, as a finished run does, and mark it as checked.

    It must give the outputs of the tuned model. That one is released first, so that memory holds one base at a time:
    `model.loaded.module` is empty afterwards. New modules that the part lacks are saved.

    Raises:
        SavedPartDiffers: the part cannot be opened, or gives other outputs.
        RunError: a file cannot be written.
    """
    folder = RunDirectory(run.trained)
    facts = TrainedPart.read(folder)
    _verify(model, folder.path, facts)
    with writing(folder.path):
        flush(folder.path)
        files = {name: digest for name, digest in file_hashes(folder.path).items() if name != SIDECAR}
    facts.model_copy(update={"files": files, "check": "passed", "unchecked": ""}).write(folder)


def _verify(model: PreparedModel, folder: Path, facts: TrainedPart) -> None:
    """Open a trained part on a fresh base, save new modules that it lacks, and compare (SavedPartDiffers).

    If it opens with the options of training, trained and frozen tensors are compared one by one, and outputs with the
    tuned tensors in place. With other options, or if shapes differ, only outputs are compared.
    """
    loaded, strategy, task = model.loaded, model.strategy, model.data.ready.task
    who = _who(model)
    status = f"{TRAINED}/ is marked as one that failed its check. {REPAIRED} saves it anew, without training again."
    batch, count = _examples(model)
    model.experiment.listener.phase("check what was saved")
    same_options = strategy.loading_options() == strategy.config.model_dump(mode="json")
    before, wide, allowed = _first_outputs(model.device, task, loaded, batch, exact=not same_options)
    tensors, new = dict(state_tensors(loaded.module)), _new_tensors(loaded)
    frozen = tensor_hashes(frozen_tensors(loaded.module)) if same_options else {}
    loaded.module = nn.Module()
    model.device.accelerator.free_memory()  # with the optimiser's; modules and their hooks refer to each other
    release_memory()  # what the model and its measuring left behind, before a base is read once more
    lost, moved, rounded = list[str](), list[str](), 0.0
    try:
        fresh = _open(model, facts, folder, new)
        if same_options:
            reopened, now = state_tensors(fresh.module), tensor_hashes(frozen_tensors(fresh.module))
            # Of other shapes (a rank that was cut, say), other tensors say the same, and outputs alone tell.
            alike = all(
                name not in reopened or reopened[name].shape == tensor.shape for name, tensor in tensors.items()
            )
            lost, halved = _compare(tensors, reopened) if alike else ([], False)
            moved = differing(frozen, now) if alike else []
            if alike and not lost + moved:
                if halved:
                    rounded = distance(_outputs(model.device, task, fresh, batch), before)
                copy_into({name: reopened[name] for name in tensors}, tensors, str(folder))
        after = _outputs(model.device, task, fresh, batch, wide=wide)
    except torch.OutOfMemoryError:
        raise
    # Strategies are third-party code and raise anything; each means that a finished run could not be opened.
    except Exception as error:
        cause = cause_in(strategy, error)
        raise SavedPartDiffers(f"{who} saved files that cannot be opened again: {cause}. {status}") from error
    difference = distance(after, before)
    differences = f"{len(lost):,} of {len(tensors):,} trained tensors differ, such as {lost[0]!r}" if lost else ""
    if moved:
        differences += f"{differences and ', and '}{len(moved):,} of {len(frozen):,} frozen ones, such as {moved[0]!r}"
    if lost or moved or not difference <= allowed:
        raise SavedPartDiffers(
            f"{who} saved files that do not restore the tuned model: opened on a fresh base, its outputs on {count} "
            f"examples differ from the tuned model's by {number(difference)} of their size, and rounding explains at "
            f"most {number(allowed)}{differences and f'; {differences}'}. {status}"
        )
    if rounded:
        model.experiment.listener.message(
            f"{who} saves in half precision: opened again, outputs differ by {number(rounded)} of their size from "
            "those of the tuned model, which was measured"
        )


def _who(model: PreparedModel) -> str:
    return f"strategy {model.strategy.name!r} of {model.experiment.make_strategy.entry.origin}"


def _open(model: PreparedModel, facts: TrainedPart, folder: Path, new: Mapping[str, Tensor]) -> LoadedModel:
    """Open a trained part as a finished run does, and save the new modules (`new`: tensors by name) that it lacks."""
    experiment = model.experiment
    make_strategy = experiment.registry.factory("strategy", facts.strategy, "strategy")
    labelled = LabelledTask(replace(experiment, make_strategy=make_strategy), model.data.ready.task)
    fresh = load_base_of(labelled, facts, folder)
    strategy = prepare_strategy(model.device, labelled, fresh)
    own = _new_tensors(fresh)
    for tensor in own.values():
        tensor.zero_()  # the seed may have made them what they were, and will not in another version of torch
    load_trained_part(strategy, fresh, folder)
    if differing(own, new):
        save_tensors(new, folder / NEW_MODULES)
        _load_new_modules(fresh, folder / NEW_MODULES)
    return fresh


def _new_tensors(loaded: LoadedModel) -> dict[str, Tensor]:
    """Return the tensors of the modules that were newly initialised, by name."""
    return {
        f"{path}.{name}": tensor.detach()
        for path in loaded.new_modules
        for name, tensor in loaded.module.get_submodule(path).state_dict().items()
    }


def _examples(model: PreparedModel) -> tuple[Batch, int]:
    """Return a batch of a few measured held-out examples (else training examples), and their number.

    Rows that repeat a training row are not among them: they are not measured, so the reference lacks them.
    """
    held, train, refers = model.plan.held_out, model.data.encoded["train"], reference_keys(model.data.ready.task)
    split = train if held is None or (refers and not held.split.reference) else held.split
    count = min(EXAMPLES, len(split), model.experiment.recipe.train.batch_size)
    members = np.linspace(0, len(split) - 1, count).round().astype(np.int64)
    return to_device(split.batch(members), model.device.unsharded_device), count


class _Recorder(Criterion):
    """Records the outputs from which the plain losses are computed."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.room = KEPT_OUTPUTS

    def single(self, targets: Tensor, *logits: Tensor) -> Tensor:
        return super().single(targets, *self._keep(logits))

    def multi(self, targets: Tensor, *logits: Tensor) -> Tensor:
        return super().multi(targets, *self._keep(logits))

    def regression(self, targets: Tensor, *outputs: Tensor) -> Tensor:
        return super().regression(targets, *self._keep(outputs))

    def _keep(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for output in outputs:
            self.kept.append(output.detach().reshape(-1)[: self.room].cpu().double())
            self.room -= len(self.kept[-1])
        return outputs


def _first_outputs(
    device: Device, task: Task, loaded: LoadedModel, batch: Batch, *, exact: bool
) -> tuple[Tensor, bool, float]:
    """Return the tuned model's outputs, whether they are in float32, and the difference that rounding explains.

    Args:
        exact: compute in float32 if the model can, because the reopened model may round differently.
    """
    if not exact:
        return _outputs(device, task, loaded, batch), False, OUTPUTS
    on_gpu = device.accelerator.device.type == "cuda"
    try:
        outputs = _outputs(device, task, loaded, batch, wide=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return _outputs(device, task, loaded, batch), False, rounding(device.precision.compute)
    return outputs, True, ROUNDINGS * TF32_EPS if on_gpu else OUTPUTS


def _outputs(device: Device, task: Task, loaded: LoadedModel, batch: Batch, *, wide: bool = False) -> Tensor:
    """Return what a task's loss is computed from, as one vector.

    The vector holds the outputs at labelled positions and the loss. It holds only the loss if the task does not use
    the criterion.

    Args:
        wide: compute in float32 regardless of the run's precision.
    """
    recorder = _Recorder()
    context = in_float32(loaded.module) if wide else nullcontext()
    with device.inference(loaded), context, seeded(0, device.unsharded_device):  # a loss may draw random numbers
        total, _ = loss_of(task, loaded.module, batch, recorder)
    return torch.cat([*recorder.kept, total.detach().reshape(-1).cpu().double()])


def _compare(tuned: Tensors, reopened: Tensors) -> tuple[list[str], bool]:
    """Return the tensors that changed by more than half precision, and whether some are stored in half precision."""
    lost, halved = list[str](), False
    for name, tensor in tuned.items():
        other = reopened.get(name)
        if other is not None and (torch.equal(tensor, other) or _rounds_elsewhere(tensor, other)):
            continue
        if other is not None and any(torch.equal(tensor.to(dtype).to(other.dtype), other) for dtype in HALVES):
            halved = True
        else:
            lost.append(name)
    return lost, halved


def _rounds_elsewhere(a: Tensor, b: Tensor) -> bool:
    """Return whether two float32 tensors differ by no more than the rounding of one or two sums."""
    alike = a.dtype is torch.float32 and a.shape == b.shape and a.numel()
    return bool(alike and row_distances(b.flatten(), a.flatten(), math.inf) <= rounding(a.dtype))
