"""A plugin with a component of every kind that writes down each call of it: what docs/plugins/lifecycle.md tells."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import Interrupting, Interruption
from tiny import tiny_bert

from ftengine import Recipe, Run, api, fine_tune, hookimpl, load_run, plan, registry_of
from ftengine.engine import subprocess_runs
from ftengine.engine.compare import compare_strategies
from ftengine.plugins.class_validation import SORTS
from ftengine.plugins.registry import KINDS, Registry

SEED = 1234
EXAMPLES = 16
Call = tuple[str, str]
"""What was called, such as "strategy.prepare" (a second object of the kind is "strategy 2"), and what held then."""

COMPUTING = {"loss", "predict", "infer"}
"""Methods that compute with the model, of which gradients and autocast are told."""
SEEDS = {int(np.random.SeedSequence([SEED, step, 0]).generate_state(1)[0]): "step" for step in range(100)}
SEEDS[SEED] = "recipe"


class Augmenter(api.TextAugmenter):
    """Leave texts as they are."""

    def change(self, text, rng):
        return text


class Regularizer(api.Regularizer):
    """Change nothing, with every optional method."""

    traits = api.RegularizerTraits(needs_validation=False)

    def attach(self, loaded, task):
        """Nothing to see."""

    def detach(self, loaded):
        """Nothing to undo."""

    def criterion(self, plain):
        return plain

    def penalty(self, model, batch, loss):
        return None

    def on_step_end(self, model, step):
        """Nothing to see."""

    def averaged_weights(self, model):
        return nullcontext()

    def state_dict(self):
        return {"state": torch.zeros(1)}

    def load_state_dict(self, tensors):
        """Nothing to take back."""

    def on_train_end(self, model, measure):
        return {}


class FastPath(api.FastPath):
    """Compute as the model does, with every optional method."""

    def check_device(self, device):
        """Nothing to refuse."""

    @contextmanager
    def activate(self, loaded, context):
        yield {"modules": 1}

    def around_batch(self, members, batch, loss):
        return nullcontext()

    def computed_tokens(self, batch):
        return None

    def order(self, batch):
        return None


class Evaluator(api.FittedEvaluator, api.CodeEvaluator):
    """The share of right answers."""

    reads = frozenset({"label", "predicted"})
    metrics = {"right": api.Metric("right answers", higher_is_better=True, proportion=True)}  # noqa: RUF012

    def set_labels(self, task, labels):
        """Nothing to refuse."""

    def runs_code(self):
        """Nothing beside plugins."""

    def start(self):
        """Nothing to begin."""

    def fit(self, rows):
        """Nothing to learn."""

    def score(self, rows, weights):
        right = rows["label"] == rows["predicted"]
        return {"right": float((right * weights).sum() / weights.sum()) if weights.sum() else float("nan")}


class Audit(api.Audit):
    """Find nothing."""

    def examine(self, data):
        return []


class Rule(api.Rule):
    """Find nothing."""

    def judge(self, run):
        return []


class Callback(api.Callback):
    """Do nothing."""

    def check_options(self):
        """Nothing to refuse."""

    def on_train_begin(self, event):
        """Nothing to do."""

    on_pre_optimizer_step = on_step_end = on_evaluate = on_save = on_run_end = on_train_begin


class Exporter(api.Exporter):
    """Write nothing."""

    def check(self, source):
        """Nothing to refuse."""

    def export(self, source, folder):
        return api.Exported(noise=0.0)


BUILT_IN = {
    "loader": "transformers",
    "reader": "jsonl",
    "task": "text-classification",
    "strategy": "lora",
    "optimizer": "adamw",
    "schedule": "cosine",
}
"""Components of the box that stand for their kind, with the optional methods that they write."""
MORE = {"strategy": {"frozen_parameters": lambda strategy, model, step, steps, steps_per_epoch: ()}}
"""An optional method that it lacks."""
OWN = {
    "augmenter": Augmenter,
    "regularizer": Regularizer,
    "fast-path": FastPath,
    "evaluator": Evaluator,
    "audit": Audit,
    "rule": Rule,
    "callback": Callback,
    "exporter": Exporter,
}


class Recorder:
    """Components of every kind that write down the outermost calls of their contract's methods."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._objects: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        self._busy = False

    def registry(self) -> Registry:
        """Return a registry that offers them under the name "recorded", beside the box."""
        plugin, registry = types.ModuleType("recorded"), Registry()
        for kind, (_, hook) in KINDS.items():
            cls = registry.get(kind, BUILT_IN[kind]).cls if kind in BUILT_IN else OWN[kind]
            offer = self._offering(self._recorded(kind, cls), hook)
            setattr(plugin, hook, hookimpl(offer))
        return registry_of({"recorded": plugin})

    def _offering(self, cls: type, hook: str) -> Any:
        def offer():
            return [cls]

        offer.__name__ = hook
        return offer

    def _recorded(self, kind: str, cls: type) -> type:
        cls = type(cls.__name__, (cls,), MORE.get(kind, {}))
        names = {
            name
            for name in contract(kind)
            if inspect.isfunction(inspect.getattr_static(cls, name, None)) and api.overrides(cls, name)
        }
        namespace = {name: self._wrapped(kind, name, cls) for name in names}
        namespace |= {"name": "recorded", "__doc__": "Write down what is called."}
        namespace["traits"] = replace(cls.traits, is_default=False)
        return type("Recorded", (cls,), namespace)

    def _wrapped(self, kind: str, name: str, cls: type) -> Any:
        method = inspect.getattr_static(cls, name)

        def call(component, *args, **kwargs):
            outermost, self._busy = not self._busy, True
            try:
                if outermost:
                    self._write(kind, name, component, args)
                return method.__get__(component, type(component))(*args, **kwargs)
            finally:
                if outermost:
                    self._busy = False

        return wraps(getattr(cls, name))(call)

    def _write(self, kind: str, name: str, component: Any, args: tuple[Any, ...]) -> None:
        objects = self._objects[kind]
        if not any(one is component for one in objects):
            objects.append(component)
        number = next(i for i, one in enumerate(objects, 1) if one is component)
        self.calls.append((f"{kind}{f' {number}' if number > 1 else ''}.{name}", held(name, args)))


def held(name: str, args: tuple[Any, ...]) -> str:
    """Return what held in a call: of the model that it was given, of gradients, and of torch's random numbers."""
    loaded = [x.module if isinstance(x, api.LoadedModel) else x for x in args]
    module = next((x for x in loaded if isinstance(x, torch.nn.Module)), None)
    told, device = [], "cpu" if module is None else next(module.parameters()).device.type
    if module is not None:
        told.append("meta device" if device == "meta" else "training mode" if module.training else "evaluation mode")
    if name in COMPUTING:
        told.append("gradients" if torch.is_grad_enabled() else "no gradients")
        told += ["autocast"] if torch.is_autocast_enabled(device) else []
    seeded = SEEDS.get(torch.initial_seed())
    if seeded == "recipe" and (name == "load" or (name == "prepare" and told != ["meta device"])):
        told.append("seeded by the recipe")
    if seeded == "step" and "training mode" in told and name in ("loss", "penalty"):
        told.append("seeded by the step")
    return ", ".join(told)


@cache
def contract(kind: str) -> frozenset[str]:
    """Return the methods of a kind, written or optional."""
    from test_contract import members

    base = KINDS[kind][0]
    return frozenset().union(*map(members, (base, api.Component, *(sort for sort in SORTS if issubclass(sort, base)))))


def recipe(folder: Path, output: str, **train: Any) -> Recipe:
    """Return a recipe that names a recorded component wherever it names one; the model is tiny."""
    return Recipe.make(
        {
            "model": {"source": str(folder / "bert"), "loader": "recorded"},
            "task": "recorded",
            "data": {"train": str(folder / "rows.jsonl"), "validation": 0.25, "reader": "recorded"},
            "strategy": "recorded",
            "augment": ["recorded"],
            "regularize": ["recorded"],
            "evaluate": ["recorded"],
            "callbacks": ["recorded"],
            "train": {
                "epochs": 2,
                "batch_size": 4,
                "optimizer": "recorded",
                "schedule": "recorded",
                "precision": "bfloat16",
                "fast_paths": "recorded",
                "checkpoint_every": 3,
                **train,
            },
            "evaluation": {"resamples": 100},
            "seed": SEED,
            "output": str(folder / output),
        }
    )


def prepare(folder: Path) -> None:
    """Write model and rows."""
    tiny_bert(folder / "bert", initializer_range=0.2)
    rows = [{"text": f"{word} number {i}", "label": word} for i in range(EXAMPLES // 2) for word in ("good", "bad")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recorded(folder: Path) -> dict[str, list[Call]]:
    """Return the calls of each command on a small run, rows read anew each time."""
    prepare(folder)
    calls = {}

    def record(command: str, run: Callable[[Registry], Any]) -> None:
        recorder = Recorder()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FTENGINE_CACHE", str(folder / "cache" / command))
            run(recorder.registry())
        calls[command] = recorder.calls

    def resume(registry: Registry) -> None:
        with pytest.raises(Interruption):
            fine_tune(recipe(folder, "resumed"), registry=Recorder().registry(), listener=Interrupting(4))
        fine_tune(recipe(folder, "resumed"), resume=True, registry=registry)

    def compare(registry: Registry) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ftengine.engine.experiment.Registry", lambda: registry)
            patch.setattr("ftengine.engine.finished.Registry", lambda: registry)
            patch.setattr(
                subprocess_runs, "train", lambda child, *_: fine_tune(child.recipe, registry=Recorder().registry())
            )
            specs = [{"name": "recorded", "rank": rank} for rank in (2, 4)]
            compare_strategies(recipe(folder, "compared"), specs)

    def opened(registry: Registry) -> Run:
        return load_run(folder / "run", registry=registry)

    record("plan", lambda registry: plan(recipe(folder, "run"), registry=registry))
    record("train", lambda registry: fine_tune(recipe(folder, "run"), registry=registry))
    record("train --resume", resume)
    record("evaluate", lambda registry: opened(registry).evaluate())
    record("evaluate --evaluators", lambda registry: opened(registry).evaluate(evaluators=["recorded"]))
    record("predict", lambda registry: list(opened(registry).predict([{"text": "good number 3"}])))
    record("merge", lambda registry: opened(registry).merge(folder / "merged"))
    record("compare", compare)
    return calls


def first_calls(calls: list[Call]) -> dict[str, str]:
    """Return what was called in the order of first calls, and what held in all of them."""
    found: dict[str, list[str]] = {}
    for name, holds in calls:
        if holds not in (kept := found.setdefault(name, [])):
            kept.append(holds)
    return {name: " / ".join(holds) for name, holds in found.items()}
