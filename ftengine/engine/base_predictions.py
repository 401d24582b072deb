"""What models predict of all that is measured; what a base predicts is kept, for whatever run asks the same of it.

It is kept under a hash of all that it depends on, and taken from there where that is equal: it is the same to the bit.
A run that goes on after an interruption finds what it measured as any other run does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any

import pyarrow as pa
from accelerate.utils import broadcast_object_list

from ftengine.api import Component, LoadedModel, Strategy, overrides
from ftengine.data.cache_folder import ROWS, entry_of, known_entry
from ftengine.data.encoding import content_of
from ftengine.data.features import component_state
from ftengine.engine.dependencies import dependencies, key_of, prepared_by
from ftengine.engine.experiment import described
from ftengine.engine.prepared_data import KnownTask
from ftengine.errors import DataError
from ftengine.evaluation.plan import EvalPlan, EvalSet
from ftengine.evaluation.runner import EvalResult, EvalRunner, own_columns
from ftengine.model.modes import quick_products
from ftengine.parallel.device import Device
from ftengine.text import counted
from ftengine.training.cpu import prepare_cpu
from ftengine.training.steps import batch_tokens

TABLES_FORMAT = 5
"""Part of every key; raised when tables would be computed or stored in another way."""

READ = 32
"""Examples at most that a model reads together, or train.batch_size where that is more, as far as they have no more
tokens than a batch of the longest, unless the recipe says how many: a product of few tokens waits for its weights."""

ANSWERED = 16
"""Examples at least that a model answers together, unless the recipe says how many: each step reads all weights, for
one token as for many."""

Keys = Mapping[str, str]
"""By name of a set, what its table is kept under."""


def run_model(
    device: Device, known: KnownTask, loaded: LoadedModel, plan: EvalPlan, side: str, kept: EvalResult | None = None
) -> EvalResult:
    """Return what a model says of all that is measured; `side` is "base" or "tuned". All processes take part.

    `kept` has what it said of the plan's sets already.
    """
    accelerator = device.accelerator
    if side != "base" and known.task.reference:
        unknown = [one.name for one in plan.sets() if one.reading and not one.split.reference]
        assert not unknown, f"a tuned model is compared with a reference that was not asked: {', '.join(unknown)}"
    sizes = _sizes(known, device)
    if accelerator.device.type == "cpu":
        prepare_cpu()
    with quick_products():
        return EvalRunner(accelerator, loaded, known.task, *sizes, known.listener, side).run(plan, kept)


def _sizes(known: KnownTask, device: Device) -> tuple[int, int, int, int]:
    """Return what an `EvalRunner` is told of batches: examples, those together, tokens, and those answered."""
    asked, section = known.recipe.evaluation.batch_size, known.recipe.train
    read, answered = asked or max(READ, section.batch_size), asked or max(ANSWERED, section.batch_size)
    return asked or section.batch_size, read, batch_tokens(section, device.accelerator.device), answered


def run_base(
    device: Device, known: KnownTask, loaded: LoadedModel, plan: EvalPlan, starting: Strategy | None = None
) -> EvalResult:
    """Return what a base model says, as `run_model` does; what an earlier run of the same knows is not asked again.

    Args:
        starting: what has prepared the model already, with the trained part that it starts from.

    Raises:
        DataError: the cache is another user's.
    """
    result = EvalResult()
    keys = keys_of(device, known, loaded, plan, starting) if device.is_main else {}
    if examples := _fill_in(result, plan, keys):
        known.listener.message(
            f"reused the base model's predictions of {counted(examples, 'example')} from an earlier run with the same "
            "model, data, evaluators and machine (evaluation.reuse_base: false recomputes them)"
        )
    made = result.missing(plan)
    if made or plan.benchmarks:
        with device.measuring(loaded):
            result = run_model(device, known, loaded, plan, "base", result)
    try:
        _keep(result, made, keys)
    except DataError as error:
        known.listener.message(f"the base model's predictions are not cached for later runs: {error}")
    return result


def keys_of(
    device: Device, known: KnownTask, loaded: LoadedModel, plan: EvalPlan, starting: Strategy | None = None
) -> Keys:
    """Return the keys of those sets whose tables may be kept; none where it cannot be told what they depend on."""
    recipe, sets = known.recipe, plan.sets()
    if not recipe.evaluation.reuse_base or any(one.runs_code() is not None for each in sets for one in each.evaluators):
        return {}
    components: list[Component] = [] if starting is None else [starting]
    components += [one for each in sets for one in (*each.evaluators, *each.split.augmenters)]
    computed = dependencies(device, known, loaded, components)
    if computed is None:
        return {}
    common = [
        TABLES_FORMAT,
        computed,
        [_sizes(known, device), plan.seed],
        *([] if starting is None else prepared_by(starting)),
    ]
    return {one.name: key_of("base", [common, _examples(one)]) for one in sets}


def _fill_in(result: EvalResult, plan: EvalPlan, keys: Keys) -> int:
    """Put tables of an earlier run into a result, in all processes; return how many examples they have.

    Raises:
        DataError: the cache is another user's.
    """
    known = {one.name: table for one in plan.sets() if (table := _known(one, keys)) is not None}
    (known,) = broadcast_object_list([known])  # other hosts have other caches
    chosen = [one for one in plan.sets() if one.name in known]
    for one in chosen:
        result.file(one).write(known[one.name])
    return sum(len(one.members) for one in chosen)


def _known(one: EvalSet, keys: Keys) -> bytes | None:
    """Return a set's table as it was kept; None where there is none, or less than all of it."""
    entry = known_entry(keys[one.name]) if one.name in keys else None
    if entry is None:
        return None
    kept = EvalResult()
    try:
        table = (entry / ROWS).read_bytes()
        kept.file(one).write(table)
        return table if len(kept.predictions(one)) == len(one.members) else None
    except (OSError, pa.ArrowException):
        return None


def _keep(result: EvalResult, sets: Sequence[EvalSet], keys: Keys) -> None:
    """Keep tables for later runs, but of answers only where the model gave them all (DataError: there is no room)."""
    for one in (each for each in sets if each.name in keys):
        answered = result.predictions(one).answered.sum() if len(one.answered) else 0
        if answered == len(one.answered):
            table = result.files[one.name]

            def write(folder: Path, table: IO[bytes] = table) -> dict[str, Any]:
                table.seek(0)
                with open(folder / ROWS, "wb") as target:
                    copyfileobj(table, target)
                return {}

            entry_of(keys[one.name], "the base model's predictions", write)


def _examples(one: EvalSet) -> list[Any]:
    """Return what a table's examples are, and what is asked of them."""
    split = one.split
    numbers = blake2b(split.index.tobytes() + one.answered.tobytes(), digest_size=16).hexdigest()
    known = blake2b(json.dumps(own_columns(one).to_pydict()).encode(), digest_size=16).hexdigest()
    return [
        split.content or content_of(split.rows, split.task),
        [numbers, known, split.max_length, split.room if split.augmenters else None],
        [[described(each) for each in components] for components in (one.reading, one.answering, split.augmenters)],
        [component_state(each) for each in one.reading if overrides(each, "keep_together")],  # what files it read
        [split.standing, split.seed, list(one.slices)],
        [dict(one.options), dict(one.sampled)] if len(one.answered) else [],
    ]
