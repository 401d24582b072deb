"""What the base model said, kept in the run's folder from its beginning, so that a resumed run need not ask again."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

from ftengine.api import LoadedModel
from ftengine.data.encoding import content_of
from ftengine.engine.device import Device
from ftengine.engine.prepared_data import PreparedData
from ftengine.errors import RunError
from ftengine.evaluation.plan import EvalPlan, EvalSet
from ftengine.evaluation.runner import EvalResult, kept_predictions, save_predictions
from ftengine.run.directory import RunDirectory
from ftengine.run.environment import versions

FILE = "base.json"


def base_key(data: PreparedData, plan: EvalPlan, device: Device, loaded: LoadedModel) -> str:
    """Return a hash of all that what the base says depends on: its weights, the examples, who reads what, and where."""
    recipe = data.experiment.resolved()
    depends: dict[str, Any] = {
        "base": loaded.fingerprint,
        "recipe": {key: value for key, value in recipe.items() if key != "output"},
        "sets": [_described(one) for one in plan.sets()],
        "versions": versions(),
        "device": str(device.accelerator.device),
        "processes": device.accelerator.num_processes,
        "precision": [device.precision.name, str(device.precision.frozen)],
    }
    return blake2b(json.dumps(depends, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _described(one: EvalSet) -> list[Any]:
    split = one.split
    content = split.content or content_of(split.rows, split.task)
    numbers = blake2b(split.index.tobytes() + one.answered.tobytes(), digest_size=16).hexdigest()
    names = [evaluator.name for evaluator in one.evaluators]
    return [one.name, content, numbers, names, dict(one.options), list(one.slices)]


def keep_base(run: RunDirectory, base: EvalResult, key: str) -> None:
    """Write the base's tables of predictions, and what they depend on."""
    save_predictions(run, base=base)
    run.write_json(FILE, {"key": key})


def kept_base(run: RunDirectory, plan: EvalPlan, key: str) -> EvalResult | None:
    """Return what the base said when the run began; None where that is not known, or was something else."""
    try:
        known = run.read_json(FILE)["key"] == key
    except (RunError, KeyError, TypeError):
        return None
    return kept_predictions(run, plan, "base") if known else None
