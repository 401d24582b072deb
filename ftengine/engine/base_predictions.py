"""Running models over the sets of an evaluation plan; outputs of a base model are cached for other runs.

The cache holds the model's own outputs: predictions and answers, as the task returns them. The key is a hash of
everything that they depend on, so reused outputs are equal to the bit. Judgements are never cached: evaluators read
rows, keep columns and score anew in every run, since their inputs (a file, a library, a service, the environment) are
unknown. What an evaluator asks of a model besides these outputs (`keep_together`, `ask_models`) is computed again, too.
Nothing is cached where a task, loader or strategy of another distribution takes part (`dependencies`).

A resumed run finds its outputs in the cache like any other run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import pyarrow as pa
from accelerate.utils import broadcast_object_list

from ftengine.api import Listener, LoadedModel, Strategy, overrides
from ftengine.api.task_sorts import reference_keys
from ftengine.data.encoding import content_of
from ftengine.engine.dependencies import dependencies, prepared_by
from ftengine.engine.prepared_data import LabelledTask
from ftengine.errors import DataError
from ftengine.evaluation.plan import EvalPlan, EvalSet
from ftengine.evaluation.runner import ANSWERED, ASKED, READ, EvalResult, EvalRunner, Outputs
from ftengine.evaluation.table import MEMBER
from ftengine.identity.cache import ROWS, cache_key, cached_entry, entry_of
from ftengine.parallel.arithmetic import quick_products
from ftengine.parallel.device import Device
from ftengine.text import counted
from ftengine.training.cpu import prepare_cpu
from ftengine.training.steps import batch_tokens

TOGETHER = 32
"""Examples at most that a model reads together, or train.batch_size where that is more, as far as they have no more
tokens than a batch of the longest, unless the recipe says how many: a product of few tokens waits for its weights."""

ANSWERED_TOGETHER = 128
"""Examples at least whose answers are asked for together, unless the recipe says how many: how many of them grow at one
time is the generator's choice."""

Name = tuple[str, str]
"""The name of a set, and which of its outputs: `READ` or `ANSWERED`; of a benchmark, `ASKED`."""


def run_model(
    device: Device,
    labelled: LabelledTask,
    loaded: LoadedModel,
    plan: EvalPlan,
    side: str,
    outputs: Outputs | None = None,
    on_output: Callable[[Name, pa.Table], None] = lambda name, table: None,
) -> EvalResult:
    """Run a model over all sets of a plan; `side` is "base" or "tuned". All processes take part.

    Args:
        outputs: outputs of the model that are known already; the model computes the others.
        on_output: called with the name and the table of each output that the model computed.
    """
    accelerator = device.accelerator
    if side != "base" and reference_keys(labelled.task):
        unknown = [eval_set.name for eval_set in plan.sets() if eval_set.reading and not eval_set.split.reference]
        assert not unknown, (
            f"a tuned model is compared with a reference that has no predictions for {', '.join(unknown)}"
        )
    sizes = _sizes(labelled, device)
    if accelerator.device.type == "cpu":
        prepare_cpu()
    with quick_products():
        runner = EvalRunner(
            accelerator, loaded, labelled.task, *sizes, labelled.listener, side, outputs or {}, on_output
        )
        return runner.run(plan)


def _sizes(labelled: LabelledTask, device: Device) -> tuple[int, int, int, int]:
    """Return the batch sizes of an `EvalRunner`: micro-batch, examples read together, tokens, examples answered."""
    batch_size, section = labelled.recipe.evaluation.batch_size, labelled.recipe.train
    read = batch_size or max(TOGETHER, section.batch_size)
    answered = batch_size or max(ANSWERED_TOGETHER, section.batch_size)
    return batch_size or section.batch_size, read, batch_tokens(section, device.accelerator.device), answered


def run_base(
    device: Device,
    labelled: LabelledTask,
    loaded: LoadedModel,
    plan: EvalPlan,
    starting: Strategy | None = None,
    outputs: Outputs | None = None,
) -> EvalResult:
    """Run a base model over all sets of a plan, as `run_model` does, but reuse the outputs that an earlier run cached.

    Args:
        starting: the strategy that has already prepared the model, with the trained part that it starts from.
        outputs: outputs of the model that are known already.

    Raises:
        DataError: another user owns the cache.
    """
    keys = keys_of(device, labelled, loaded, plan, starting) if device.is_main else {}
    reused = _reusable_outputs(plan, keys)
    if reused:
        labelled.listener.message(
            f"reused {_counted(reused)} from an earlier run with the same model, data, options and machine "
            "(evaluation.reuse_base: false computes them anew)"
        )
    outputs = {**(outputs or {}), **reused}
    together = any(overrides(evaluator, "keep_together") for eval_set in plan.sets() for evaluator in eval_set.reading)
    benchmarks = {(benchmark.name, ASKED) for benchmark in plan.benchmarks}
    asks_model = together or ({*members_by_output(plan)} | benchmarks) - set(outputs)
    keeper = _Keeper(labelled.listener, plan, keys)
    with device.measuring(loaded) if asks_model else nullcontext():
        result = run_model(device, labelled, loaded, plan, "base", outputs, keeper.keep)
    result.outputs = keeper.others
    return result


def keys_of(
    device: Device, labelled: LabelledTask, loaded: LoadedModel, plan: EvalPlan, starting: Strategy | None = None
) -> Mapping[Name, str]:
    """Return the cache keys of the outputs; {} where it is unknown what they depend on, so that none is cached."""
    if not labelled.recipe.evaluation.reuse_base:
        return {}
    computed = dependencies(device, labelled, loaded, [] if starting is None else [starting])
    if computed is None:
        return {}
    prepared = [] if starting is None else prepared_by(starting)
    return keys_by(plan, [computed, _sizes(labelled, device), prepared])


def keys_by(plan: EvalPlan, depends: Any) -> dict[Name, str]:
    """Return the cache keys of a model's outputs: of the plan's sets and of `depends`, which are JSON values."""
    common = [depends, plan.seed]
    keys: dict[Name, str] = {}
    for eval_set in plan.sets():
        examples = _examples(eval_set)
        answer_options = {
            READ: [],
            ANSWERED: [eval_set.answered.tolist(), dict(eval_set.options), dict(eval_set.sampled)],
        }
        keys |= {
            (eval_set.name, kind): cache_key("base", [common, examples, kind, answer_options[kind]])
            for kind in _kinds(eval_set)
        }
    return keys


def _kinds(eval_set: EvalSet) -> list[str]:
    """Return which outputs a set needs."""
    return [READ] * bool(eval_set.reading) + [ANSWERED] * bool(len(eval_set.answered))


def members_by_output(plan: EvalPlan) -> dict[Name, np.ndarray]:
    """Return, for each output, the numbers of the examples that a plan needs it for, (n,)."""
    members = {READ: lambda eval_set: np.arange(len(eval_set.split)), ANSWERED: lambda eval_set: eval_set.answered}
    return {(eval_set.name, kind): members[kind](eval_set) for eval_set in plan.sets() for kind in _kinds(eval_set)}


def _reusable_outputs(plan: EvalPlan, keys: Mapping[Name, str]) -> dict[Name, pa.Table]:
    """Return the cached outputs that cover all members, in all processes (DataError: another user owns the cache)."""
    read = {name: _read(keys[name], members) for name, members in members_by_output(plan).items() if name in keys}
    complete = {name: table for name, table in read.items() if table is not None}
    (complete,) = broadcast_object_list([complete])  # other hosts have other caches
    return complete


def _read(key: str, members: np.ndarray) -> pa.Table | None:
    """Return the outputs under a key; None where there are none, or they do not cover all members."""
    entry = cached_entry(key)
    return None if entry is None else read_outputs(entry / ROWS, members)


def read_outputs(file: Path, members: np.ndarray | None) -> pa.Table | None:
    """Read outputs; None if the file is missing or damaged, or lacks some of `members` (None: not checked)."""
    try:
        with pa.OSFile(str(file)) as opened:
            table = pa.ipc.open_stream(opened).read_all()
        return table if members is None or np.array_equal(table[MEMBER].to_numpy(), members) else None
    except (OSError, KeyError, pa.ArrowException):
        return None


def write_outputs(file: Path | IO[bytes], table: pa.Table) -> None:
    """Write outputs, as `read_outputs` reads them."""
    with pa.ipc.new_stream(str(file) if isinstance(file, Path) else file, table.schema) as stream:
        stream.write_table(table)


@dataclass
class _Keeper:
    """Caches outputs for later runs as a model computes them; answers only once all of them are there.

    Args:
        others: outputs that are not cached, in unnamed temporary files.
    """

    listener: Listener
    plan: EvalPlan
    keys: Mapping[Name, str]
    others: dict[Name, IO[bytes]] = field(default_factory=dict)

    def keep(self, name: Name, table: pa.Table) -> None:
        """Cache outputs, before an evaluator that judges them can fail."""
        if name not in self.keys or not np.array_equal(table[MEMBER].to_numpy(), members_by_output(self.plan)[name]):
            self._hold(name, table)
            return

        def write(folder: Path) -> dict[str, Any]:
            write_outputs(folder / ROWS, table)
            return {}

        try:
            entry_of(self.keys[name], "the base model's outputs", write)
        except DataError as error:
            self.listener.message(f"the base model's outputs are not cached for later runs: {error}")
            self.keys = {}
            self._hold(name, table)

    def _hold(self, name: Name, table: pa.Table) -> None:
        self.others[name] = TemporaryFile(prefix="ftengine-")  # noqa: SIM115
        write_outputs(self.others[name], table)


def _counted(outputs: Outputs) -> str:
    """Say how many predictions and answers there are."""
    read, answered = (
        sum(len(table) for (_, kind), table in outputs.items() if kind == wanted_kind)
        for wanted_kind in (READ, ANSWERED)
    )
    parts = [f"predictions of {counted(read, 'example')}"] * bool(read)
    parts += [f"answers to {counted(answered, 'example')}"] * bool(answered)
    return f"the base model's {' and '.join(parts)}"


def _examples(eval_set: EvalSet) -> list[Any]:
    """Return JSON values that identify the examples of a set as the model gets them.

    Where augmenters change the examples, the changed texts are hashed, since files that an augmenter reads (a list of
    words, say) are not known here.
    """
    split = eval_set.split
    if split.fixed_epoch is None:
        content = split.content or content_of(split.rows, split.task)
    else:
        content = content_of((split.example(member) for member in range(len(split))), split.task)
    numbers = blake2b(split.index.tobytes(), digest_size=16).hexdigest()
    return [content, numbers, split.max_length, split.fixed_epoch]
