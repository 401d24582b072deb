"""What models gave in a run that is not finished, kept beside its checkpoints: no resume asks them for it again.

A run that goes on has the recipe, data and base with which it began. Outputs lie under a hash of what else they depend
on: the files that are asked, the weights, versions, and code. Outputs of other code than ftengine's own are not kept,
as its author may have mended it before the run goes on. What judges outputs is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from accelerate.utils import broadcast_object_list

from ftengine.api import Listener
from ftengine.engine.base_predictions import Name, keys_by, members_by_output, read_outputs, write_outputs
from ftengine.engine.experiment import described
from ftengine.engine.prepared_data import LabelledTask
from ftengine.evaluation.plan import EvalPlan
from ftengine.evaluation.runner import ASKED, Outputs
from ftengine.identity.cache import cache_key
from ftengine.parallel.device import Device
from ftengine.run.directory import PARTIAL, RunDirectory, writing
from ftengine.run.own_code import code_of
from ftengine.text import counted

FOLDER = "outputs"
"""Its folder, among the checkpoints; it goes when the run is finished."""


@dataclass(frozen=True)
class RunOutputs:
    """The outputs of one model in a run.

    Args:
        plan: what is asked.
        keys: of each output that is kept, its file's name; none of other code than ftengine's own, and none in other
            processes than the main one.
    """

    folder: Path
    plan: EvalPlan
    keys: Mapping[Name, str]

    @classmethod
    def of(cls, device: Device, run: RunDirectory, labelled: LabelledTask, plan: EvalPlan, weights: Any) -> RunOutputs:
        """Return those of the model that has some weights, which JSON values say."""
        strategy = labelled.experiment.make_strategy
        parts = [labelled.task, labelled.experiment.loader, *(benchmark.asker for benchmark in plan.benchmarks)]
        code = code_of((strategy.entry.cls, *map(type, parts))) if device.is_main else None
        if code is None:
            return cls(run.checkpoints / FOLDER, plan, {})
        common = [weights, strategy.described, [described(part) for part in parts], code]
        benchmark_keys = {
            (benchmark.name, ASKED): cache_key("base", [common, benchmark.data]) for benchmark in plan.benchmarks
        }
        return cls(run.checkpoints / FOLDER, plan, keys_by(plan, common) | benchmark_keys)

    def read(self, side: str, listener: Listener) -> Outputs:
        """Return what was kept, in all processes, and report it; `side` says of which model, "base" or "tuned"."""
        members = members_by_output(self.plan)
        read = {name: read_outputs(self._file(name), members.get(name)) for name in self.keys}
        (stored,) = broadcast_object_list([{name: table for name, table in read.items() if table is not None}])
        if stored:
            listener.message(f"resume: outputs of the {side} model are there already ({counted(len(stored), 'set')})")
        return stored

    def keep(self, name: Name, table: pa.Table) -> None:
        """Write an output, before anything can fail that judges it (RunError: it cannot be written)."""
        if name in self.keys:
            self._write(name, lambda partial: write_outputs(partial, table))

    def keep_files(self, files: Mapping[Name, IO[bytes]]) -> None:
        """Write outputs that files without names hold (RunError: one cannot be written)."""
        for name, file in ((name, file) for name, file in files.items() if name in self.keys):
            file.seek(0)
            content = file.read()
            self._write(name, lambda partial, content=content: partial.write_bytes(content))  # type: ignore[misc]

    def _file(self, name: Name) -> Path:
        return self.folder / f"{self.keys[name]}.arrow"

    def _write(self, name: Name, write: Callable[[Path], Any]) -> None:
        target = self._file(name)
        partial = target.with_name(target.name + PARTIAL)
        with writing(target, partial):
            target.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            partial.replace(target)


def forget_outputs(run: RunDirectory) -> None:
    """Remove what was kept, once the run is finished (RunError: it cannot be removed)."""
    run.remove(run.checkpoints / FOLDER)
