"""The third and fourth stage of a run: the base model is measured and prepared, then trained and measured again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, set_seed
from torch import nn

from ftengine.api import CodeEvaluator, Event, LoadedModel, Started, Strategy, overrides
from ftengine.api.on_policy import is_on_policy, is_validated
from ftengine.api.task_sorts import reference_keys
from ftengine.data.encoding import EncodedSplit
from ftengine.engine.base_predictions import run_base, run_model
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Experiment, described
from ftengine.engine.fast_paths import fast_paths_of, require_fast_paths
from ftengine.engine.memory import choose_memory, require_base_fits, require_measurable
from ftengine.engine.model_fit import require_fit
from ftengine.engine.prepared_data import (
    LabelledTask,
    PreparedData,
    ReadyTask,
    apply_strategy,
    check_own_regularizers,
)
from ftengine.engine.references import ask_reference, reference_starts
from ftengine.engine.run_outputs import RunOutputs
from ftengine.evaluation.plan import EvalPlan
from ftengine.evaluation.results import Measured, measure_all
from ftengine.evaluation.runner import EvalResult
from ftengine.identity import fingerprint_base, fingerprint_processor, require_same_base
from ftengine.identity.base import fingerprint_tokens, tensor_hashes
from ftengine.identity.code import fingerprint_files
from ftengine.identity.files import file_states
from ftengine.model import count, state_tensors
from ftengine.model.target_scale import scale_targets
from ftengine.parallel.device import Device
from ftengine.parallel.sharding import gathered
from ftengine.plugins.attribution import json_mapping
from ftengine.run.directory import RunDirectory
from ftengine.run.environment import build, hardware, plugin_origins, versions
from ftengine.run.records import Computation, Environment, Memory, TrainedPart, TrainingResult
from ftengine.run.seal import require_saved
from ftengine.text import counted
from ftengine.training.fast_paths import FastPaths
from ftengine.training.loop import Trainer
from ftengine.training.memory import release_memory
from ftengine.training.setup import Setup
from ftengine.training.steps import Steps, plan_steps


@dataclass(frozen=True)
class PreparedModel:
    """A model as the strategy prepared it, ready to train.

    Args:
        plan: what is measured of the base and the tuned model.
        processes: number of processes with which the run began.
        base: the base model's predictions and answers.
        measured: the base model's figures (main process only), computed before training so that a failing evaluator
            ends the run early.
        memory: whether gradient checkpointing is used, and why.
        fast_paths: the fast paths used in training.
        empty: the model without weights, if `loaded` is sharded over processes.
    """

    data: PreparedData
    plan: EvalPlan
    device: Device
    loaded: LoadedModel
    strategy: Strategy
    processes: int
    base: EvalResult
    measured: Mapping[str, Measured]
    memory: Memory
    fast_paths: FastPaths
    empty: nn.Module | None = None

    @property
    def experiment(self) -> Experiment:
        return self.data.experiment

    def environment(self) -> Environment:
        """Return the facts for environment.json."""
        device = self.device
        task = self.data.ready.task
        running = [evaluator for evaluator in self.data.ready.evaluators() if isinstance(evaluator, CodeEvaluator)]
        files = {file for evaluator in running for file in evaluator.code_files()}
        files |= {*task.code_files()} if is_on_policy(task) else set()
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
            fast_paths=dict(self.fast_paths.used),
            date=self.experiment.day,
            code=fingerprint_files(sorted(files)),
        )

    def trainer(self, run: RunDirectory) -> Trainer:
        """Return a trainer; it writes nothing yet (TrainingError: the strategy left nothing trainable)."""
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
                validation=encoded.get("validation") if is_validated(self.data.ready.task) else None,
                general=self.plan.general,
                section=experiment.recipe.train.model_copy(
                    update={"gradient_checkpointing": self.memory.gradient_checkpointing}
                ),
                seed=experiment.recipe.training_seed,
                processes=self.processes,
                run=run,
                listener=experiment.listener,
                events=self.notify,
                fast_paths=self.fast_paths,
            )
        )

    def notify(self, event: Event) -> None:
        """Send an event to the recipe's callbacks, in the main process."""
        if self.device.is_main:
            self.experiment.callbacks.notify(event)


@dataclass(frozen=True)
class TrainedModel:
    """A model after training (`prepared.loaded` is trained in place).

    Args:
        gathered_model: the same model; in the main process with all weights, if `prepared.loaded` is sharded.
    """

    prepared: PreparedModel
    result: TrainingResult
    gathered_model: LoadedModel


def prepare_model(data: PreparedData, resumed: RunDirectory | None = None) -> PreparedModel:
    """Load the base model, measure it, and let the strategy prepare it.

    Args:
        data: the prepared data.
        resumed: the run that is resumed, if any.

    Raises:
        InputError: the model cannot be loaded, or data and model do not fit.
        PluginError: an evaluator cannot measure the base.
    """
    experiment, device = data.experiment, Device.open(data.experiment.recipe, training=True)
    now = device.accelerator.num_processes
    began = now if resumed is None else Environment.read(resumed).processes
    plan = evaluation_plan(data, began)
    steps = plan_steps(len(data.encoded["train"]), experiment.recipe.train, began)
    if began != now:
        experiment.listener.message(
            f"the run began with {counted(began, 'process', 'processes')} and goes on with {now}: a step keeps its "
            f"{steps.batch:,} examples, in micro-batches of at most {experiment.recipe.train.batch_size}"
        )
    loaded = _loaded(data, plan, device, steps, resumed)
    refers = bool(reference_keys(data.ready.task))
    strategy = _apply_strategy(data, plan, device, loaded) if refers and reference_starts(data.ready) else None
    outputs = None
    if resumed is not None:
        outputs = RunOutputs.of(device, resumed, data.ready, plan, "base").read("base", experiment.listener)
    base = run_base(device, data.ready, loaded, plan, strategy, outputs)
    experiment.listener.phase("figures")
    measured = measure_all(plan, base, experiment.listener) if device.is_main else {}
    if refers:
        learnt_from = [split for name, split in data.encoded.items() if name != "test"]
        ask_reference(device, data.ready, loaded, plan, base, learnt_from, strategy)
    strategy, empty, fast_paths = _prepared(data, plan, device, loaded, strategy, steps)
    memory = choose_memory(data, device, loaded, strategy, steps, fast_paths, resumed)
    return PreparedModel(data, plan, device, loaded, strategy, began, base, measured, memory, fast_paths, empty)


def _loaded(
    data: PreparedData, plan: EvalPlan, device: Device, steps: Steps, resumed: RunDirectory | None
) -> LoadedModel:
    """Check that the base can be trained and measured as the recipe says, load it, and place it on the device."""
    plan.start_evaluators()
    ready, section = data.ready, data.ready.recipe.train
    if is_on_policy(ready.task):
        ready.task.start_scoring()
    check_own_regularizers(ready, steps.total)
    require_measurable(device, section)
    require_fast_paths(device, data.experiment)
    shared, key = data.experiment.shared_base, None
    if shared:
        shared.forget_unless(ready.skeleton.trained_base if ready.skeleton else None)
        key = _base_key(ready)  # of the files as they are before they are read
    loaded = load_base(ready, weights=device.is_main or not device.divides)
    if device.divides:  # the first process alone has read it
        (loaded.fingerprint,) = broadcast_object_list([loaded.fingerprint])
    require_fit(loaded, _unfitted(data, plan))
    place_base(device, ready, loaded)
    if shared:
        own = data.experiment.loader.runs_code(loaded.source) is None
        if ready.skeleton is not None and own and not device.divides:
            shared.keep(key, ready.recipe.training_seed, loaded, ready.skeleton.trained_base)
    if resumed is None:
        require_base_fits(device, section)
    return loaded


def _apply_strategy(data: PreparedData, plan: EvalPlan, device: Device, loaded: LoadedModel) -> Strategy:
    strategy = prepare_strategy(device, data.ready, loaded)
    require_fit(loaded, _unfitted(data, plan))  # a strategy may take some of its room
    return strategy


def _prepared(
    data: PreparedData, plan: EvalPlan, device: Device, loaded: LoadedModel, strategy: Strategy | None, steps: Steps
) -> tuple[Strategy, nn.Module | None, FastPaths]:
    """Let the strategy prepare the model (unless it has), shard it if needed, and choose fast paths."""
    strategy = strategy or _apply_strategy(data, plan, device, loaded)
    trained, total = count(loaded.module)
    empty = device.divide(loaded) if device.divides else None
    divided = f", sharded over {device.accelerator.num_processes} processes" if device.divides else ""
    by = kernels_of(strategy, device)
    data.experiment.listener.message(
        f"{trained:,} of {total:,} parameters train, in {device.precision.name}{divided}{f'; {by}' if by else ''}"
    )
    return strategy, empty, fast_paths_of(data, device, loaded, strategy, steps)


def _unfitted(data: PreparedData, plan: EvalPlan) -> list[EncodedSplit]:
    """Return the examples that were not checked by a model without weights."""
    return [] if data.ready.skeleton else [*data.encoded.values(), *plan.encoded()]


def train_model(prepared: PreparedModel, trainer: Trainer, run: RunDirectory) -> TrainedModel:
    """Train the model (TrainingError: training cannot go on; the run keeps its last checkpoint)."""
    prepared.notify(Started(run.path, trainer.progress.step, prepared.experiment.resolved()))
    release_memory()  # what loading the base and measuring it left behind
    result = trainer.train()
    release_memory()  # what the largest micro-batch left behind
    loaded, empty = prepared.loaded, prepared.empty
    gathered_model = loaded if empty is None else replace(loaded, module=gathered(loaded.module, empty))
    result = result.model_copy(update={"kernels": kernels_of(prepared.strategy, prepared.device)})
    return TrainedModel(prepared, result, gathered_model)


def measure_tuned(trained: TrainedModel, run: RunDirectory) -> EvalResult:
    """Run the tuned model over all sets of the plan; afterwards the model is no longer sharded.

    The run stores the outputs until it is finished, so that a resumed run does not compute them again.
    """
    model = trained.prepared
    device, ready = model.device, model.data.ready
    weights = tensor_hashes(state_tensors(trained.gathered_model.module)) if device.is_main else {}
    outputs = RunOutputs.of(device, run, ready, model.plan, weights)
    tuned = run_model(
        device, ready, model.loaded, model.plan, "tuned", outputs.read("tuned", ready.listener), outputs.keep
    )
    model.loaded.module = trained.gathered_model.module
    return tuned


def reports_of(strategy: Strategy) -> dict[str, Any]:
    """Return the strategy's report on how it computes; {} if it gives none."""
    reports = strategy.environment()
    return json_mapping(strategy, "environment", reports)


def kernels_of(strategy: Strategy, device: Device) -> str | None:
    """Return the kernels used on the device, as "LoRA layers: compiled (why)"; None if the strategy reports none."""
    kernels = []
    for what, by_device in reports_of(strategy).items():
        report = by_device.get(device.accelerator.device.type) if isinstance(by_device, dict) else None
        if isinstance(report, dict) and "backend" in report:
            kernels.append(f"{what}: {report['backend']}{f' ({why})' if (why := report.get('reason')) else ''}")
    return "; ".join(kernels) or None


def load_base(labelled: LabelledTask, *, weights: bool = True) -> LoadedModel:
    """Load the base model in its checkpoint's dtype and take its fingerprint.

    Args:
        labelled: the task.
        weights: whether to read the weights; without them, a loader that can builds a skeleton.

    Raises:
        SourceError: the model cannot be loaded.
        RunError: the source is the trained part of a run and has changed since it was saved.
    """
    experiment = labelled.experiment
    experiment.listener.phase("load model")
    set_seed(experiment.recipe.training_seed)  # a fresh head is a function of the recipe
    require_saved(Path(experiment.recipe.model.source).expanduser())  # a fully tuned model may be a base
    shared, seed = experiment.shared_base, experiment.recipe.training_seed
    loaded = (shared and shared.model(_base_key(labelled), seed)) or _read_base(labelled, weights)
    experiment.with_day(loaded.processor)
    loaded.inference_paths = experiment.inference_paths()
    labelled.task.set_model(loaded, None)
    return loaded


def _base_key(labelled: LabelledTask) -> list[Any]:
    """Return what a base in memory depends on, without the seed of new modules."""
    experiment = labelled.experiment
    precision = experiment.recipe.model.dtype, experiment.recipe.train.precision
    files = file_states(Path(experiment.recipe.model.source).expanduser())
    return [described(experiment.loader), experiment.request(labelled.task), precision, files]


def _read_base(labelled: LabelledTask, weights: bool) -> LoadedModel:
    """Load a base, with its fingerprint, and scale its targets."""
    experiment = labelled.experiment
    loader, request = experiment.loader, experiment.request(labelled.task)
    if not weights and overrides(loader, "load_skeleton"):
        loaded = loader.load_skeleton(request)
    else:
        loaded = loader.load(request)
    experiment.with_day(loaded.processor)
    loaded.inference_paths = experiment.inference_paths()
    if "weights" not in loaded.fingerprint and weights:
        loaded.fingerprint = fingerprint_base(loaded)
    if loader.runs_code(loaded.source) is None:
        loaded.fingerprint["code"] = {}  # a class of an installed plugin is the loader's, and no part of the model
    loaded.fingerprint["head"] = loaded.head
    loaded.fingerprint["processor"] = fingerprint_processor(loaded.processor)
    loaded.fingerprint["tokens"] = fingerprint_tokens(loaded.processor)
    scale_targets(loaded, labelled.task.labels)
    labelled.task.set_model(loaded, None)
    return loaded


def load_base_of(labelled: LabelledTask, trained_on: TrainedPart, folder: Path) -> LoadedModel:
    """Load the base model of the trained part in a folder.

    Raises:
        SourceError: the base cannot be loaded.
        BaseMismatch: it is not the base that the part was trained on.
    """
    loaded = load_base(labelled)
    require_same_base(loaded.fingerprint, trained_on.base, loaded.source, str(folder))
    return loaded


def place_base(device: Device, ready: ReadyTask, loaded: LoadedModel) -> None:
    """Move a base model to the device, with final dtypes if the skeleton says what will train."""
    if ready.skeleton is None:
        device.move(loaded)
        return
    for name, parameter in loaded.module.named_parameters():
        parameter.requires_grad_(name in ready.skeleton.trained_base and parameter.is_floating_point())
    device.place(loaded)


def prepare_strategy(device: Device, labelled: LabelledTask, loaded: LoadedModel) -> Strategy:
    """Build a strategy and let it prepare the model with the recipe's seed; trained weights are float32."""
    strategy = labelled.experiment.make_strategy()
    set_seed(labelled.recipe.training_seed)
    apply_strategy(strategy, loaded)
    device.place(loaded)
    labelled.task.set_model(loaded, strategy)
    return strategy
