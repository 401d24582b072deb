"""What models give of all that is measured; what a base gives is kept, for whatever run asks the same of it.

Kept are the model's own outputs: predictions of examples, and answers to them, as the task returns them. They lie under
a hash of all that they depend on, and are taken from there where that is equal: they are the same to the bit. What
judges them is never kept. Evaluators read rows, keep columns and score anew in every run, since what they ask (a file,
a library, a service, the environment) is not known. A model is asked again for what an evaluator itself asks of it
beside these outputs (`keep_together`, `ask_models`). Tasks, loaders and strategies of other distributions take part in
the outputs, so what they make is not kept at all (`dependencies`).

A run that goes on after an interruption finds what it measured as any other run does.
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
from ftengine.engine.prepared_data import KnownTask
from ftengine.errors import DataError
from ftengine.evaluation.plan import EvalPlan, EvalSet
from ftengine.evaluation.runner import ANSWERED, ASKED, READ, EvalResult, EvalRunner, Outputs
from ftengine.evaluation.table import MEMBER
from ftengine.identity.cache import ROWS, cache_key, entry_of, known_entry
from ftengine.parallel.arithmetic import quick_products
from ftengine.parallel.device import Device
from ftengine.text import counted
from ftengine.training.cpu import prepare_cpu
from ftengine.training.steps import batch_tokens

TOGETHER = 32
"""Examples at most that a model reads together, or train.batch_size where that is more, as far as they have no more
tokens than a batch of the longest, unless the recipe says how many: a product of few tokens waits for its weights."""

ANSWERED_TOGETHER = 16
"""Examples at least that a model answers together, unless the recipe says how many: each step reads all weights, for
one token as for many."""

Name = tuple[str, str]
"""The name of a set, and which of its outputs: `READ` or `ANSWERED`; of a benchmark, `ASKED`."""


def run_model(
    device: Device,
    known: KnownTask,
    loaded: LoadedModel,
    plan: EvalPlan,
    side: str,
    outputs: Outputs | None = None,
    given: Callable[[Name, pa.Table], None] = lambda name, table: None,
) -> EvalResult:
    """Return what a model says of all that is measured; `side` is "base" or "tuned". All processes take part.

    Args:
        outputs: what is known of the model; it is asked for the rest, with which `given` is called.
    """
    accelerator = device.accelerator
    if side != "base" and reference_keys(known.task):
        unknown = [one.name for one in plan.sets() if one.reading and not one.split.reference]
        assert not unknown, f"a tuned model is compared with a reference that was not asked: {', '.join(unknown)}"
    sizes = _sizes(known, device)
    if accelerator.device.type == "cpu":
        prepare_cpu()
    with quick_products():
        runner = EvalRunner(accelerator, loaded, known.task, *sizes, known.listener, side, outputs or {}, given)
        return runner.run(plan)


def _sizes(known: KnownTask, device: Device) -> tuple[int, int, int, int]:
    """Return what an `EvalRunner` is told of batches: examples, those together, tokens, and those answered."""
    asked, section = known.recipe.evaluation.batch_size, known.recipe.train
    read, answered = asked or max(TOGETHER, section.batch_size), asked or max(ANSWERED_TOGETHER, section.batch_size)
    return asked or section.batch_size, read, batch_tokens(section, device.accelerator.device), answered


def run_base(
    device: Device,
    known: KnownTask,
    loaded: LoadedModel,
    plan: EvalPlan,
    starting: Strategy | None = None,
    outputs: Outputs | None = None,
) -> EvalResult:
    """Return what a base model says, as `run_model` does; what an earlier run of the same knows is not asked again.

    Args:
        starting: what has prepared the model already, with the trained part that it starts from.
        outputs: what is known of the model otherwise.

    Raises:
        DataError: the cache is another user's.
    """
    keys = keys_of(device, known, loaded, plan, starting) if device.is_main else {}
    kept = _kept(plan, keys)
    if kept:
        known.listener.message(
            f"reused {_counted(kept)} from an earlier run with the same model, data, options and machine "
            "(evaluation.reuse_base: false asks it anew)"
        )
    outputs = {**(outputs or {}), **kept}
    together = any(overrides(evaluator, "keep_together") for one in plan.sets() for evaluator in one.reading)
    benchmarks = {(one.name, ASKED) for one in plan.benchmarks}
    asked = together or ({*wanted(plan)} | benchmarks) - set(outputs)
    keeper = _Keeper(known.listener, plan, keys)
    with device.measuring(loaded) if asked else nullcontext():
        result = run_model(device, known, loaded, plan, "base", outputs, keeper.keep)
    result.outputs = keeper.others
    return result


def keys_of(
    device: Device, known: KnownTask, loaded: LoadedModel, plan: EvalPlan, starting: Strategy | None = None
) -> Mapping[Name, str]:
    """Return the keys of those outputs that may be kept; none where it cannot be told what they depend on."""
    if not known.recipe.evaluation.reuse_base:
        return {}
    computed = dependencies(device, known, loaded, [] if starting is None else [starting])
    if computed is None:
        return {}
    prepared = [] if starting is None else prepared_by(starting)
    return keys_by(plan, [computed, _sizes(known, device), prepared])


def keys_by(plan: EvalPlan, depends: Any) -> dict[Name, str]:
    """Return the keys of what a model gives of a plan's sets, which depends on so much beside them (JSON values)."""
    common = [depends, plan.seed]
    keys: dict[Name, str] = {}
    for one in plan.sets():
        examples = _examples(one)
        asked = {READ: [], ANSWERED: [one.answered.tolist(), dict(one.options), dict(one.sampled)]}
        keys |= {(one.name, kind): cache_key("base", [common, examples, kind, asked[kind]]) for kind in _kinds(one)}
    return keys


def _kinds(one: EvalSet) -> list[str]:
    """Return which outputs a set takes."""
    return [READ] * bool(one.reading) + [ANSWERED] * bool(len(one.answered))


def wanted(plan: EvalPlan) -> dict[Name, np.ndarray]:
    """Return the members of each output that a plan takes, (n,)."""
    members = {READ: lambda one: np.arange(len(one.split)), ANSWERED: lambda one: one.answered}
    return {(one.name, kind): members[kind](one) for one in plan.sets() for kind in _kinds(one)}


def _kept(plan: EvalPlan, keys: Mapping[Name, str]) -> dict[Name, pa.Table]:
    """Return what an earlier run kept of all members, in all processes (DataError: the cache is another user's)."""
    found = {name: _read(keys[name], members) for name, members in wanted(plan).items() if name in keys}
    known = {name: table for name, table in found.items() if table is not None}
    (known,) = broadcast_object_list([known])  # other hosts have other caches
    return known


def _read(key: str, members: np.ndarray) -> pa.Table | None:
    """Return the outputs under a key; None where there are none, or not of all members."""
    entry = known_entry(key)
    return None if entry is None else read_outputs(entry / ROWS, members)


def read_outputs(file: Path, members: np.ndarray | None) -> pa.Table | None:
    """Read outputs; None where there is no such file, it is damaged, or not of all members (None: of whichever)."""
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
    """Keeps outputs for later runs as a model gives them; of answers, only where it gave them all.

    Args:
        others: those that are not kept, in files without names.
    """

    listener: Listener
    plan: EvalPlan
    keys: Mapping[Name, str]
    others: dict[Name, IO[bytes]] = field(default_factory=dict)

    def keep(self, name: Name, table: pa.Table) -> None:
        """Keep outputs, before anything can fail that judges them."""
        if name not in self.keys or not np.array_equal(table[MEMBER].to_numpy(), wanted(self.plan)[name]):
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
        sum(len(table) for (_, kind), table in outputs.items() if kind == one) for one in (READ, ANSWERED)
    )
    parts = [f"predictions of {counted(read, 'example')}"] * bool(read)
    parts += [f"answers to {counted(answered, 'example')}"] * bool(answered)
    return f"the base model's {' and '.join(parts)}"


def _examples(one: EvalSet) -> list[Any]:
    """Return what the examples of a set are, as the model gets them.

    Where augmenters change them, that is what comes of it: what an augmenter reads, such as a list of words, is not
    known.
    """
    split = one.split
    if split.fixed_epoch is None:
        content = split.content or content_of(split.rows, split.task)
    else:
        content = content_of((split.example(member) for member in range(len(split))), split.task)
    numbers = blake2b(split.index.tobytes(), digest_size=16).hexdigest()
    return [content, numbers, split.max_length, split.fixed_epoch]
