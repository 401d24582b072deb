"""Merging that checks itself: outputs on a probe batch before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from ftengine.api import Batch, LoadedModel, Merges, Probes, Strategy, Task
from ftengine.engine.prepared_data import ReadyTask, apply_strategy
from ftengine.engine.saved_part import load_trained_part
from ftengine.errors import MergeChangedOutputs, NotMergeable
from ftengine.model import probe_tokens, raw_outputs, save_model
from ftengine.run.directory import RunDirectory, write_folder

ALLOWED_ROUNDINGS = 64
"""Largest accepted difference of the outputs, in units of float32's rounding error.

The check is made in float32, whatever dtype the result is stored in, so that rounding explains little: merged and
unmerged models round at different places in every layer and differ by some roundings, a wrong merge by thousands.
"""


@dataclass(frozen=True)
class MergeReport:
    """How the merged model compares with the unmerged one on a probe batch.

    Args:
        path: the merged model's folder.
        dtype: of its weights.
        difference: ‖merged - unmerged‖ / ‖unmerged‖ over the outputs, computed in float32.
        tolerance: the largest difference that is accepted.
        effect: ‖unmerged - base‖ / ‖base‖, for scale.
    """

    path: str
    dtype: str
    difference: float
    tolerance: float
    effect: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


def check_merge(strategy: Strategy) -> Merges:
    """Return a strategy that can merge with its options, before any model is loaded; else NotMergeable says why."""
    if not isinstance(strategy, Merges):
        raise NotMergeable(
            f"strategy {strategy.name!r} cannot be merged into its base: it changes more than weights. "
            "Serve the base with the trained part instead."
        )
    strategy.check_merge()
    return strategy


@torch.no_grad()
def merge_into(target: RunDirectory, ready: ReadyTask, loaded: LoadedModel, trained: Path, dtype: str) -> MergeReport:
    """Merge a trained part into its base (`loaded`), check it, and write it as a plain model.

    Args:
        trained: folder of the trained part.
        dtype: of the merged weights; "auto" keeps the base's.

    Raises:
        NotMergeable: the strategy has no merged form.
        MergeChangedOutputs: outputs differ by more than rounding explains; nothing is written.
    """
    module, task, strategy = loaded.module, ready.task, ready.experiment.make_strategy()
    kept = next(p.dtype for p in module.parameters() if p.is_floating_point())
    stored = kept if dtype == "auto" else getattr(torch, dtype)
    _cast(module, torch.float32)
    probe = probe_of(task, loaded)
    ready.listener.phase("merge")
    base = outputs_of(task, module.eval(), probe)
    set_seed(ready.recipe.seed)
    apply_strategy(strategy, loaded)
    load_trained_part(strategy, loaded, trained)
    before = outputs_of(task, module.eval(), probe)
    check_merge(strategy).merge(loaded)
    after = outputs_of(task, module.eval(), probe)
    difference, effect = _distance(after, before), _distance(before, base)
    tolerance = ALLOWED_ROUNDINGS * torch.finfo(torch.float32).eps
    if not difference <= tolerance:
        raise MergeChangedOutputs(
            f"merging changed the outputs on a probe batch by {difference:.3g} of their size; rounding explains at "
            f"most {tolerance:.3g}. Nothing was written. Serve the base with {str(trained)!r} instead, and please "
            "report this."
        )
    _cast(module, stored)
    write_folder(target.path, lambda folder: save_model(module, loaded.processor, folder))
    return MergeReport(str(target.path), str(stored).removeprefix("torch."), difference, tolerance, effect)


def probe_of(task: Task, loaded: LoadedModel) -> Batch:
    """Return a batch made without data: the task's own, else random tokens."""
    return task.probe(loaded) if isinstance(task, Probes) else probe_tokens(loaded.module)


def outputs_of(task: Task, module: nn.Module, batch: Batch) -> torch.Tensor:
    """Return a model's logits, as the task reads them where it says how."""
    return task.outputs(module, batch) if isinstance(task, Probes) else raw_outputs(module, batch)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    if hasattr(module, "config"):
        module.config.dtype = dtype  # what a reader of the saved model takes


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())
