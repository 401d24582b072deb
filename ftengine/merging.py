"""Merging that checks itself: outputs on a probe batch before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ftengine.api import LoadedModel
from ftengine.errors import MergeChangedOutputs
from ftengine.job import Job
from ftengine.parameters import save_model
from ftengine.run import RunDirectory, write_folder

ALLOWED_ROUNDINGS = 64
"""Largest accepted output difference, in units of the dtype's rounding error at the largest output.

Merged and unmerged models round at different places in every layer, so their outputs differ by a few
roundings; a merge that went wrong differs by thousands.
"""


@dataclass(frozen=True)
class MergeReport:
    """How the merged model compares with the unmerged one on a probe batch.

    Args:
        path: the merged model's folder.
        dtype: of its weights.
        largest_difference: over all outputs of the probe batch.
        largest_output: the largest absolute output, for scale.
        tolerance: the largest difference that the dtype explains.
    """

    path: str
    dtype: str
    largest_difference: float
    largest_output: float
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


@torch.no_grad()
def merge_into(target: RunDirectory, job: Job, loaded: LoadedModel) -> MergeReport:
    """Merge a prepared and loaded model, check it, and write it as a plain model.

    Raises:
        NotMergeable: the strategy has no merged form.
        MergeChangedOutputs: outputs differ by more than the dtype explains; nothing is written.
    """
    loaded.module.eval()
    probe = job.task.probe(loaded)
    job.listener.phase("merge")
    before = job.task.outputs(loaded.module, probe).float()
    job.strategy.merge(loaded)
    after = job.task.outputs(loaded.module, probe).float()
    dtype = next(p.dtype for p in loaded.module.parameters() if p.is_floating_point())
    largest = float(before.abs().max())
    difference = float((before - after).abs().max())
    tolerance = ALLOWED_ROUNDINGS * torch.finfo(dtype).eps * largest
    if not difference <= tolerance:
        raise MergeChangedOutputs(
            f"merging changed the outputs on a probe batch by {difference:.3g}; {str(dtype).removeprefix('torch.')} "
            f"explains at most {tolerance:.3g}. Nothing was written. Merge with --dtype float32."
        )

    def fill(folder: Path) -> None:
        save_model(loaded.module, loaded.processor, folder)

    if target.path.is_dir():
        target.path.rmdir()  # it is empty: require_free has seen it
    target.path.parent.mkdir(parents=True, exist_ok=True)
    write_folder(target.path, fill)
    return MergeReport(str(target.path), str(dtype).removeprefix("torch."), difference, largest, tolerance)
