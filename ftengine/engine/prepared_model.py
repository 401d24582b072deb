"""The third and the fourth stage of a run: the base model measured and prepared, then trained and measured again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, set_seed
from torch import nn

from ftengine.api import Event, LoadedModel, Started, Strategy, Task, overrides
from ftengine.api.figures import counted
from ftengine.data.encoding import EncodedSplit, content_of
from ftengine.engine import earlier_base
from ftengine.engine.device import Device, processes
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Experiment
from ftengine.engine.memory import choose_memory, require_base_fits, require_measurable
from ftengine.engine.prepared_data import (
    PreparedData,
    ReadyTask,
    apply_strategy,
    check_own_regularizers,
    require_vocabulary,
)
from ftengine.errors import DataError, RecipeError, RunError
from ftengine.evaluation.plan import EvalPlan, EvalSet
from ftengine.evaluation.results import Measured, measure_all
from ftengine.evaluation.runner import EvalResult, EvalRunner, kept_predictions, save_predictions
from ftengine.model import count, fingerprint_base, fingerprint_processor, require_same_base
from ftengine.model.fingerprints import fingerprint_tokens
from ftengine.plugins.returned import json_mapping
from ftengine.run.directory import RunDirectory
from ftengine.run.environment import build, hardware, peak_memory_bytes, plugin_origins, versions
from ftengine.run.records import Computation, Environment, Memory, TrainedPart, TrainingResult
from ftengine.training.loop import Trainer
from ftengine.training.memory import release_memory
from ftengine.training.setup import Setup
from ftengine.training.sharding import gathered
from ftengine.training.steps import batch_tokens, plan_steps

BASE_FILE = "base.json"
"""What the base's tables of predictions depend on, in the folder of a run that is not finished."""

ANSWERED = 16
"""Examples at least that a model answers together, unless the recipe says how many: each step reads all weights, for
one token as for many."""


@dataclass(frozen=True)
class PreparedModel:
    """A model as the strategy prepared it, ready to train.

    Args:
        plan: what is measured of base and tuned model.
        processes: with how many the run began.
        base: what the base model said of all that; `base_key` is a hash of what it depends on.
        measured: its figures, made before training so that an evaluator that fails ends the run there; in the main
            process alone.
        memory: whether activations are computed twice, and why.
        empty: the model without weights, where `loaded` is divided over processes.
    """

    data: PreparedData
    plan: EvalPlan
    device: Device
    loaded: LoadedModel
    strategy: Strategy
    processes: int
    base: EvalResult
    base_key: str
    measured: Mapping[str, Measured]
    memory: Memory
    empty: nn.Module | None = None

    @property
    def experiment(self) -> Experiment:
        return self.data.experiment

    def environment(self) -> Environment:
        """Return what the run runs on, for environment.json."""
        device = self.device
        return Environment(
            versions=versions(),
            plugins=tuple(plugin_origins(self.experiment.registry.plugins)),
            hardware=hardware(),
            build=build(),
            device=str(device.accelerator.device),
            processes=device.accelerator.num_processes,
            precision=Computation(
                compute=device.precision.name,
                frozen_weights=str(device.precision.frozen).removeprefix("torch."),
                reason=device.precision.reason,
            ),
            strategy=reports_of(self.strategy),
            base={"source": self.loaded.source, **self.loaded.fingerprint},
            launch=os.environ.get("TORCHELASTIC_RUN_ID"),
            memory=self.memory,
        )

    def trainer(self, run: RunDirectory) -> Trainer:
        """Make ready to train what the strategy left trainable; nothing is written yet (TrainingError: nothing is)."""
        experiment, encoded = self.experiment, self.data.encoded
        return Trainer(
            Setup(
                accelerator=self.device.accelerator,
                loaded=self.loaded,
                task=self.data.ready.task,
                strategy=self.strategy,
                regularizers=[make() for make in experiment.make_regularizers],
                callbacks=[callback.name for callback, _ in experiment.callbacks.callbacks],
                optimizer=experiment.make_optimizer(),
                schedule=experiment.schedule,
                train=encoded["train"],
                validation=encoded.get("validation"),
                general=self.plan.general,
                section=experiment.recipe.train.model_copy(
                    update={"gradient_checkpointing": self.memory.gradient_checkpointing}
                ),
                seed=experiment.recipe.seed,
                processes=self.processes,
                run=run,
                listener=experiment.listener,
                events=self.tell,
            )
        )

    def tell(self, event: Event) -> None:
        """Tell the recipe's callbacks of an event, in the main process."""
        if self.device.is_main:
            self.experiment.callbacks.tell(event)


@dataclass(frozen=True)
class TrainedModel:
    """A model after training (`prepared.loaded` is trained in place), and what it said of all that is measured."""

    prepared: PreparedModel
    result: TrainingResult
    tuned: EvalResult


def prepare_model(data: PreparedData, resumed: RunDirectory | None = None) -> PreparedModel:
    """Load the base model, measure it, and let the strategy prepare it.

    Args:
        data: what it is to train on.
        resumed: a run that goes on, in which what the base said may be kept.

    Raises:
        InputError: the model cannot be loaded, or data and model do not fit each other.
        PluginError: an evaluator cannot measure the base.
    """
    now = processes().num_processes
    began = now if resumed is None else Environment.read(resumed).processes
    plan = evaluation_plan(data, began)
    experiment, device = data.experiment, Device.open(data.experiment.recipe, training=True)
    steps = plan_steps(len(data.encoded["train"]), experiment.recipe.train, began)
    if began != now:
        experiment.listener.message(
            f"the run began with {counted(began, 'process', 'processes')} and goes on with {now}: a step keeps its "
            f"{steps.batch:,} examples, in micro-batches of at most {experiment.recipe.train.batch_size}"
        )
    check_own_regularizers(data.ready, steps.total)
    require_measurable(device, experiment.recipe.train)
    loaded = load_base_once(device, data.ready) if device.divides else load_base(data.ready)
    batched = [*data.encoded.values(), *plan.encoded()]
    require_room(loaded, batched)
    place_base(device, data.ready, loaded)
    if resumed is None:
        require_base_fits(device, experiment.recipe.train)
    key = base_key(data, plan, device, loaded)
    base = None if resumed is None else kept_base(resumed, plan, key)
    if base is not None:
        experiment.listener.message("the base model was measured before the interruption; those predictions are reused")
    if base is None or plan.benchmarks:  # these may have other questions now
        with device.measuring(loaded):
            base = run_base(device, data.ready, loaded, plan, base)
    experiment.listener.phase("figures")
    measured = measure_all(plan, base) if device.is_main else {}
    strategy = prepare_strategy(device, experiment, loaded, data.ready.task)
    require_room(loaded, batched)  # a strategy may take some of it
    trained, total = count(loaded.module)
    empty = device.divide(loaded) if device.divides else None
    divided = f", sharded over {device.accelerator.num_processes} processes" if device.divides else ""
    by = kernels_of(strategy, device)
    experiment.listener.message(
        f"{trained:,} of {total:,} parameters train, in {device.precision.name}{divided}{f'; {by}' if by else ''}"
    )
    memory = choose_memory(data, device, loaded, strategy, steps, resumed)
    return PreparedModel(data, plan, device, loaded, strategy, began, base, key, measured, memory, empty)


def train_model(prepared: PreparedModel, trainer: Trainer, run: RunDirectory) -> TrainedModel:
    """Train (TrainingError: it cannot go on; the run keeps its last checkpoint), and measure the tuned model."""
    prepared.tell(Started(run.path, trainer.progress.step, prepared.experiment.resolved()))
    release_memory()  # what loading the base and measuring it left behind
    result = trainer.train()
    release_memory()  # what the largest micro-batch left behind
    loaded = prepared.loaded
    tuned = run_model(prepared.device, prepared.data.ready, loaded, prepared.plan, "tuned")
    if prepared.empty is not None:
        loaded.module = gathered(loaded.module, prepared.empty)
    facts = {"peak_memory_bytes": peak_memory_bytes(), "kernels": kernels_of(prepared.strategy, prepared.device)}
    return TrainedModel(prepared, result.model_copy(update=facts), tuned)


def reports_of(strategy: Strategy) -> dict[str, Any]:
    """Return what a strategy says of how it computes; {} where it does not."""
    reports = strategy.environment()
    return json_mapping(strategy, "environment", reports)


def kernels_of(strategy: Strategy, device: Device) -> str | None:
    """Return what computes on the device, as "LoRA layers: compiled (why)"; None where the strategy does not say."""
    told = []
    for what, by_device in reports_of(strategy).items():
        found = by_device.get(device.accelerator.device.type) if isinstance(by_device, dict) else None
        if isinstance(found, dict) and "backend" in found:
            told.append(f"{what}: {found['backend']}{f' ({why})' if (why := found.get('reason')) else ''}")
    return "; ".join(told) or None


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
    run.write_json(BASE_FILE, {"key": key})


def kept_base(run: RunDirectory, plan: EvalPlan, key: str) -> EvalResult | None:
    """Return what the base said when the run began; None where that is not known, or was something else."""
    try:
        known = run.read_json(BASE_FILE)["key"] == key
    except (RunError, KeyError, TypeError):
        return None
    return kept_predictions(run, plan, "base") if known else None


def load_base_once(device: Device, ready: ReadyTask) -> LoadedModel:
    """Load the base model in the first process; the others have it without weights where its loader can."""
    loaded = load_base(ready, weights=device.is_main)
    (loaded.fingerprint,) = broadcast_object_list([loaded.fingerprint])
    return loaded


def load_base(
    ready: ReadyTask, trained_on: TrainedPart | None = None, where: Path | None = None, *, weights: bool = True
) -> LoadedModel:
    """Load the base model in its checkpoint's dtype and take its fingerprint.

    Args:
        ready: the task.
        trained_on: a part that was trained on it, in the folder `where`.
        weights: whether they are read, if the loader can do without.

    Raises:
        SourceError: it cannot be loaded.
        BaseMismatch: it is not what the part was trained on.
    """
    experiment = ready.experiment
    experiment.listener.phase("load model")
    set_seed(experiment.recipe.seed)  # a fresh head is a function of the recipe
    loader, request = experiment.loader, experiment.request(ready.task)
    if not weights and overrides(loader, "load_skeleton"):
        loaded = loader.load_skeleton(request)
    else:
        loaded = loader.load(request)
    if "weights" not in loaded.fingerprint and weights:
        loaded.fingerprint = fingerprint_base(loaded)
    if not (overrides(loader, "runs_code") and loader.runs_code(loaded.source)):
        loaded.fingerprint["code"] = {}  # a class of an installed plugin is the loader's, and no part of the model
    loaded.fingerprint["head"] = loaded.head
    loaded.fingerprint["processor"] = fingerprint_processor(loaded.processor)
    loaded.fingerprint["tokens"] = fingerprint_tokens(loaded.processor)
    if trained_on is not None:
        require_same_base(loaded.fingerprint, trained_on.base, loaded.source, str(where))
    if ready.skeleton is not None:
        for name, parameter in loaded.module.named_parameters():
            parameter.requires_grad_(name in ready.skeleton.trained_base and parameter.is_floating_point())
    ready.task.set_model(loaded, None)
    return loaded


def place_base(device: Device, ready: ReadyTask, loaded: LoadedModel) -> None:
    """Give a base model its device, and its dtypes where it is known what the strategy will train."""
    if ready.skeleton is None:
        device.move(loaded)
    else:
        device.place(loaded)


def prepare_strategy(device: Device, experiment: Experiment, loaded: LoadedModel, task: Task | None = None) -> Strategy:
    """Let a fresh strategy decide what trains, reproducibly, and keep that in float32; let the task see the model."""
    strategy = experiment.make_strategy()
    set_seed(experiment.recipe.seed)
    apply_strategy(strategy, loaded)
    device.place(loaded)
    if task is not None:
        task.set_model(loaded, strategy)
    return strategy


def run_model(
    device: Device, ready: ReadyTask, loaded: LoadedModel, plan: EvalPlan, side: str, kept: EvalResult | None = None
) -> EvalResult:
    """Return what a model says of all that is measured; `side` is "base" or "tuned". All processes take part.

    `kept` has what it said of the plan's sets already.
    """
    section, accelerator = ready.recipe.train, device.accelerator
    asked = ready.recipe.evaluation.batch_size
    sizes = (
        asked or section.batch_size,
        batch_tokens(section, accelerator.device),
        asked or max(ANSWERED, section.batch_size),
    )
    return EvalRunner(accelerator, loaded, ready.task, *sizes, ready.listener, side).run(plan, kept)


def run_base(
    device: Device, ready: ReadyTask, loaded: LoadedModel, plan: EvalPlan, kept: EvalResult | None = None
) -> EvalResult:
    """Return what a base model says, as `run_model` does; what an earlier run of the same knows is not asked again.

    Raises:
        DataError: the cache is another user's.
    """
    result = EvalResult() if kept is None else kept
    keys = earlier_base.keys_of(device, ready, loaded, plan, result.missing(plan))
    if examples := earlier_base.fill_in(result, plan, keys):
        ready.listener.message(
            f"reused the base model's predictions of {counted(examples, 'example')} from an earlier run with the same "
            "model, data, evaluators and machine (evaluation.reuse_base: false recomputes them)"
        )
    made = result.missing(plan)
    if made or plan.benchmarks:
        result = run_model(device, ready, loaded, plan, "base", result)
    try:
        earlier_base.keep(result, made, keys)
    except DataError as error:
        ready.listener.message(f"the base model's predictions are not cached for later runs: {error}")
    return result


def require_room(loaded: LoadedModel, splits: Iterable[EncodedSplit]) -> None:
    """Refuse examples longer than the model (RecipeError), which a loader without skeletons can tell only now.

    So it is with tokens that the model does not have (SourceError).
    """
    splits = list(splits)
    require_vocabulary(loaded, splits)
    longest = max(split.longest for split in splits)
    if loaded.max_length is not None and longest > loaded.max_length:
        raise RecipeError(
            f"the longest example has {longest} tokens, the model takes {loaded.max_length}. "
            f"Set task.max_length={loaded.max_length}, or less."
        )
    for split in splits:
        split.room = loaded.max_length  # examples may grow when they are augmented
