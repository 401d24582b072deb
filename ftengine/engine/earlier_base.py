"""What a base model said in an earlier run, taken where all that it depends on is equal: it is the same to the bit."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any

import pyarrow as pa
import torch
import xxhash
from torch import Tensor, nn

from ftengine.api import LoadedModel, overrides
from ftengine.data.cache_folder import ROWS, entry_of, known_entry
from ftengine.data.encoding import content_of
from ftengine.data.features import processor_state, task_state
from ftengine.engine.device import Device
from ftengine.engine.experiment import described
from ftengine.engine.prepared_data import ReadyTask
from ftengine.evaluation.plan import EvalPlan, EvalSet
from ftengine.evaluation.runner import EvalResult, own_columns
from ftengine.model.fingerprints import is_installed
from ftengine.plugins.code import code_of, package_of
from ftengine.run.environment import hardware, versions

TABLES_FORMAT = 1
"""Part of every key; raised when tables would be stored in another way."""

Keys = Mapping[str, str]
"""By name of a set, what its table is kept under."""


def keys_of(device: Device, ready: ReadyTask, loaded: LoadedModel, plan: EvalPlan, missing: Sequence[EvalSet]) -> Keys:
    """Return the keys of those sets whose tables may be kept; none where it cannot be told what they depend on.

    That is so of several processes, of a model of the user's own code, and of weights that are packed.
    """
    recipe, state, task = ready.recipe, _processor(loaded.processor), task_state(ready.task)
    alone, loader = device.accelerator.num_processes == 1, ready.experiment.loader
    if not (recipe.evaluation.reuse_base and alone and state and task) or overrides(ready.task, "set_model"):
        return {}
    if loader.runs_code(recipe.model.source):
        return {}
    evaluators = [evaluator for one in missing for evaluator in one.evaluators]
    changing = [augmenter for one in missing for augmenter in one.split.augmenters]
    components = [type(component) for component in (loader, ready.task, *evaluators, *changing)]
    code, model = code_of(components), _model(loaded, {package_of(component) for component in components})
    if code is None or model is None:
        return {}
    common = [
        TABLES_FORMAT,
        [described(loader), model, state, loaded.max_length, task],
        [str(device.accelerator.device), device.precision.name, torch.get_float32_matmul_precision()],
        [recipe.evaluation.batch_size or recipe.train.batch_size, recipe.train.batch_tokens, plan.seed],
        [versions(), hardware(), code],
    ]
    return {one.name: _hash([common, _examples(one)]) for one in missing}


def fill_in(result: EvalResult, plan: EvalPlan, keys: Keys) -> int:
    """Put tables of an earlier run into a result; return how many examples they have.

    Raises:
        DataError: the cache is another user's.
    """
    examples = 0
    for one in result.missing(plan):
        entry = known_entry(keys[one.name]) if one.name in keys else None
        if entry is None:
            continue
        try:
            with open(entry / ROWS, "rb") as source:
                copyfileobj(source, result.file(one))
            whole = len(result.predictions(one)) == len(one.members)
        except (OSError, pa.ArrowException):
            whole = False
        if whole:
            examples += len(one.members)
        else:
            result.files.pop(one.name, None)
    return examples


def keep(result: EvalResult, sets: Sequence[EvalSet], keys: Keys) -> None:
    """Keep tables for later runs, but of answers only where the model gave them all (DataError: there is no room)."""
    for one in sets:
        answered = result.predictions(one).answered.sum() if len(one.answered) else 0
        if one.name in keys and answered == len(one.answered):
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
        [split.standing, split.seed, dict(one.options) if len(one.answered) else {}, list(one.slices)],
    ]


@torch.no_grad()
def _model(loaded: LoadedModel, covered: set[str]) -> list[Any] | None:
    """Return what a model computes: its parts, settings and every bit of its weights; None where that is unknown.

    Args:
        covered: packages whose code is known otherwise.
    """
    module: Any = loaded.module
    files = _files({type(part) for part in module.modules() if package_of(type(part)) not in covered})
    digest = xxhash.xxh3_128()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
            return None  # weights that are packed in a way of their own
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu().numpy().data)
    settings: list[Any] = []
    for name in ("config", "generation_config"):
        own: Any = getattr(module, name, None)
        told = own.to_dict() if hasattr(own, "to_dict") else {}
        settings.append({key: str(value) for key, value in sorted(told.items()) if key != "_name_or_path"})
        settings.append(str(getattr(own, "_attn_implementation", None)))
    return None if files is None else [files, repr(module), settings, digest.hexdigest()]


def _files(classes: set[type]) -> list[list[Any]] | None:
    """Return size and time of the files that classes lie in; None where one is not of an installed package."""
    found = set[tuple[str, int, int]]()
    for cls in classes:
        name = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if name is None or not is_installed(Path(name)):
            return None
        facts = Path(name).stat()
        found.add((name, facts.st_size, facts.st_mtime_ns))
    return [list(facts) for facts in sorted(found)]


def _processor(processor: Any) -> Any:
    """Return what a tokenizer or image processor does; None where it does not say."""
    state = processor_state(processor)
    if state is None and hasattr(processor, "to_dict"):
        settings = {key: str(value) for key, value in sorted(processor.to_dict().items())}
        return [type(processor).__module__, type(processor).__qualname__, settings]
    return state


def _hash(depends: Any) -> str:
    return f"base-{blake2b(json.dumps(depends, sort_keys=True).encode(), digest_size=20).hexdigest()}"
