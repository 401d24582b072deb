"""Outputs of models in an unfinished run, stored beside its checkpoints so that a resumed run reuses them.

A resumed run has the recipe, data and base with which it began. Each file is named by a hash of everything else that
the outputs depend on: evaluation files, weights, versions and code. Outputs of code other than ftengine's own are not
stored, since its author may change it before the run is resumed. Judgements are not stored either.
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
        plan: the evaluation plan.
        keys: file name of each output that is stored; empty where code other than ftengine's own takes part, and
            outside of the main process.
    """

    folder: Path
    plan: EvalPlan
    keys: Mapping[Name, str]

    @classmethod
    def of(cls, device: Device, run: RunDirectory, labelled: LabelledTask, plan: EvalPlan, weights: Any) -> RunOutputs:
        """Return the outputs of the model with these weights, given as JSON values."""
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
        """Read the stored outputs, in all processes, and report them; `side` is "base" or "tuned"."""
        members = members_by_output(self.plan)
        read = {name: read_outputs(self._file(name), members.get(name)) for name in self.keys}
        (stored,) = broadcast_object_list([{name: table for name, table in read.items() if table is not None}])
        if stored:
            listener.message(f"resume: outputs of the {side} model are there already ({counted(len(stored), 'set')})")
        return stored

    def keep(self, name: Name, table: pa.Table) -> None:
        """Write an output, before an evaluator that judges it can fail (RunError: it cannot be written)."""
        if name in self.keys:
            self._write(name, lambda partial: write_outputs(partial, table))

    def keep_files(self, files: Mapping[Name, IO[bytes]]) -> None:
        """Write outputs from unnamed temporary files (RunError: one cannot be written)."""
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
    """Remove the stored outputs of a finished run (RunError: they cannot be removed)."""
    run.remove(run.checkpoints / FOLDER)
