"""Merging with a check: outputs on a probe batch before and after, and of the written folder.

Outputs are computed in float32, after the merge before its weights are rounded to the stored dtype. The tensors of the
folder are compared as well, since a probe batch says nothing about tokens that it does not contain.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from ftengine.api import Batch, Labels, LoadedModel, Strategy, Task, overrides
from ftengine.engine.prepared_data import LabelledTask, apply_strategy
from ftengine.engine.prepared_model import load_base
from ftengine.engine.saved_part import configure, load_trained_part
from ftengine.equivalence import OUTPUTS, STORED, differing, distance
from ftengine.errors import MergeChangedOutputs, NotMergeable
from ftengine.identity.base import tensor_hashes
from ftengine.model import (
    MODEL_FILE,
    copy_into,
    is_pretrained,
    open_model,
    probe_tokens,
    raw_outputs,
    read_tensors,
    save_model,
)
from ftengine.run.directory import RunDirectory, write_folder
from ftengine.run.record import each, without_nan
from ftengine.text import number

MERGED_DTYPES = ("auto", "float32", "bfloat16", "float16")
"""What merged weights are stored in; "auto" is the base's, where that can hold the numbers that were learnt."""


@dataclass(frozen=True)
class MergeReport:
    """How far the merged model is from the unmerged one on a probe batch.

    Args:
        path: the merged model's folder.
        dtype: of its weights.
        difference: ‖merged - unmerged‖ / ‖unmerged‖ over the outputs in float32 (for regression, minus the mean of
            the learnt numbers); or the difference of the written folder from the merged model, if larger.
        tolerance: the largest difference that is accepted.
        effect: ‖unmerged - base‖ / ‖base‖, for scale.
    """

    path: str
    dtype: str
    difference: float
    tolerance: float
    effect: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values; an infinite effect (the base's outputs are all 0) is null."""
        return each(asdict(self), without_nan)


def check_merge(strategy: Strategy) -> Strategy:
    """Check, before a model is loaded, that a strategy can merge with its options, and return it (NotMergeable)."""
    if not overrides(strategy, "merge"):
        raise NotMergeable(
            f"strategy {strategy.name!r} cannot be merged into its base: it has no merged "
            "form. Serve the base with the trained part instead."
        )
    strategy.check_merge()
    return strategy


@torch.no_grad()
def merge_into(
    target: RunDirectory, labelled: LabelledTask, strategy: Strategy, loaded: LoadedModel, trained: Path, dtype: str
) -> MergeReport:
    """Merge a trained part into its base, check it, write it as a plain model, and check the written files.

    Args:
        strategy: a new strategy that can merge (`check_merge`).
        loaded: the base; its module is released once the model is written.

    Raises:
        NotMergeable: the strategy cannot be merged, or the base is quantised.
        MergeChangedOutputs: outputs differ by more than rounding explains, or the dtype cannot represent them.
    """
    require_plain(loaded.module)
    task, labels, mean = labelled.task, labelled.task.labels, mean_of(labelled.task)
    trained_dtype = next(p.dtype for p in loaded.module.parameters() if p.is_floating_point())
    stored = _dtype_for(labels, trained_dtype) if dtype == "auto" else getattr(torch, dtype)
    _cast(loaded.module, torch.float32)
    probe = probe_of(task, loaded)
    labelled.listener.phase("merge")
    base = outputs_of(task, loaded.module.eval(), probe)
    set_seed(labelled.recipe.training_seed)
    apply_strategy(strategy, loaded)
    load_trained_part(strategy, loaded, trained)
    before = outputs_of(task, loaded.module.eval(), probe)
    strategy.merge(loaded)
    merged = outputs_of(task, loaded.module.eval(), probe)
    differences = [distance(merged, before, mean)]
    who = f"the merge of strategy {strategy.name!r} of {labelled.experiment.make_strategy.entry.origin}"
    advice = f"Nothing was written. Serve the base with {str(trained)!r} instead, and report this to its authors."
    if not differences[0] <= OUTPUTS:
        raise MergeChangedOutputs(
            f"{who} changes the outputs on a probe batch by {number(differences[0])} of their size; rounding explains "
            f"at most {number(OUTPUTS)}. {advice}"
        )

    def fill(folder: Path) -> None:
        _write(task, loaded, folder, stored)
        expected, held, kind = outputs_of(task, loaded.module, probe), _hashes(loaded.module), type(loaded.module)
        _require_held(expected, merged, labels, stored)
        loaded.module = nn.Module()  # so that memory holds one model at a time
        opened, wrong = _open_written(folder, labelled, kind)
        differences.append(distance(outputs_of(task, opened.eval(), probe), expected, mean))
        changed = differing(held, held | _hashes(opened))
        if changed and not wrong:
            raise MergeChangedOutputs(
                f"{len(changed):,} of {len(held):,} tensors of the merged model, such as {changed[0]!r}, differ "
                f"when they are read back from its files. {advice}"
            )
        if wrong or not differences[1] <= OUTPUTS:
            keys = f"; keys that do not fit: {len(wrong):,}, such as {wrong[0]!r}" if wrong else ""
            raise MergeChangedOutputs(
                f"{who} leaves something in the model that its files do not hold (a hook, a parametrization, a "
                "parameter or buffer of its own): opened from them alone, its outputs on a probe batch differ by "
                f"{number(differences[1])} of their size{keys}. {advice}"
            )

    write_folder(target.path, fill)
    name = str(stored).removeprefix("torch.")
    return MergeReport(str(target.path), name, max(differences), OUTPUTS, effect=distance(before, base, mean))


def _dtype_for(labels: Labels | None, trained_dtype: torch.dtype) -> torch.dtype:
    """Return the base's dtype, or float32 where that cannot resolve the learnt numbers' spread around their mean."""
    if labels is None or labels.mean is None or labels.std is None:
        return trained_dtype
    coarse = torch.finfo(trained_dtype).eps * abs(labels.mean) > STORED * labels.std
    return (
        torch.float32 if coarse or abs(labels.mean) + 4 * labels.std > torch.finfo(trained_dtype).max else trained_dtype
    )


def _require_held(stored: torch.Tensor, merged: torch.Tensor, labels: Labels | None, dtype: torch.dtype) -> None:
    """Raise MergeChangedOutputs if the merged model's outputs in a dtype are not finite, or change too much."""
    changed = ""
    if merged.isfinite().all() and not stored.isfinite().all():
        changed = "its outputs on a probe batch are not finite any more"
    elif labels is not None and labels.std is not None:
        rounded = distance(stored, merged, size=labels.std * merged.numel() ** 0.5)
        if rounded > STORED:
            changed = (
                f"the numbers that it gives for a probe batch change by {number(rounded)} of the standard deviation of "
                f"those in training, and at most {STORED} is accepted"
            )
    if changed:
        raise MergeChangedOutputs(
            f"{str(dtype).removeprefix('torch.')} cannot hold the merged model: {changed}. Nothing was written. Store "
            "it in float32 (--dtype float32)."
        )


def _write(task: Task, loaded: LoadedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a whole model in a dtype; afterwards it is in float32."""
    _cast(loaded.module, dtype)
    save_model(loaded.module, loaded.processor, folder)
    configure(task, loaded, folder)
    _cast(loaded.module, torch.float32)


def _open_written(folder: Path, labelled: LabelledTask, kind: type[nn.Module]) -> tuple[nn.Module, list[str]]:
    """Open a written model in float32 as a user would; return it and the keys that do not fit.

    transformers opens its own folders; other states are loaded into a module of the base's class.
    """
    if is_pretrained(folder):
        return open_model(folder, torch.float32, kind)
    module, stored = load_base(labelled).module, read_tensors(folder / MODEL_FILE)
    _cast(module, torch.float32)
    own = module.state_dict()
    both = own.keys() & stored.keys()
    copy_into({name: own[name] for name in both}, {name: stored[name] for name in both}, str(folder))
    return module, sorted(own.keys() ^ stored.keys())


def _hashes(module: nn.Module) -> dict[str, str]:
    """Return hashes of a model's stored tensors, floats as float32, since a reader may use another dtype."""
    return tensor_hashes({name: x.float() if x.is_floating_point() else x for name, x in module.state_dict().items()})


def probe_of(task: Task, loaded: LoadedModel) -> Batch:
    """Return a probe batch that needs no data: the task's own, else random tokens."""
    return task.probe_batch(loaded) if overrides(task, "probe_batch") else probe_tokens(loaded.module)


def outputs_of(task: Task, module: nn.Module, batch: Batch) -> torch.Tensor:
    """Return a model's outputs as the task reads them, else its logits."""
    return task.raw_outputs(module, batch) if overrides(task, "raw_outputs") else raw_outputs(module, batch)


def mean_of(task: Task) -> float:
    """Return the mean of a regression model's targets; 0 for other tasks."""
    return task.labels.mean or 0.0 if task.labels is not None else 0.0


def require_plain(module: nn.Module) -> None:
    """Raise NotMergeable if the base is quantised."""
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            raise NotMergeable(
                f"{name!r} of the base holds {str(parameter.dtype)[6:]}: the base is quantised, and a plain model has "
                "no place for that. Where its loader quantised it, set model.loader to auto in the run's recipe.yaml "
                "and merge again; else merge the trained part into an unquantised copy (in PEFT: merge_and_unload)."
            )


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    if hasattr(module, "config"):
        module.config.dtype = dtype  # what a reader of the saved model takes
