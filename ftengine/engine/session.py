"""A job on a device: Accelerate, the precision, training and evaluation there, and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import parse_flag_from_env

from ftengine.api import Event, LoadedModel, ReportsEnvironment
from ftengine.data.encoding import EncodedSplit
from ftengine.engine.experiment import Job
from ftengine.evaluation.plan import EvalPlan
from ftengine.evaluation.results import Evaluation, evaluate
from ftengine.evaluation.runner import EvalResult, EvalRunner
from ftengine.model import count
from ftengine.run.directory import RunDirectory
from ftengine.run.environment import build, hardware, peak_memory_bytes, plugin_origins, versions
from ftengine.training.loop import Trainer, TrainingResult
from ftengine.training.precision import apply_precision, choose_precision
from ftengine.training.setup import Setup


class Session:
    """A job on a device: Accelerate, the precision, and what is measured there."""

    def __init__(self, job: Job) -> None:
        section = job.recipe.train
        # Without being told, Accelerate takes several processes on CPUs for as many single ones.
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        device = PartialState(cpu=cpu).device
        self.precision = choose_precision(section.precision, job.recipe.model.dtype, device)
        AcceleratorState._reset_state()  # a second run in one process may want another precision
        self.job = job
        self.accelerator = Accelerator(mixed_precision=self.precision.accelerate_name, cpu=cpu)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def wait(self) -> None:
        """Wait for the other processes."""
        self.accelerator.wait_for_everyone()

    def place(self, loaded: LoadedModel) -> None:
        """Give a model its dtypes and its device."""
        apply_precision(loaded.module, self.precision)
        loaded.module.to(self.accelerator.device)

    def prepare(self, loaded: LoadedModel) -> None:
        """Let the strategy decide what trains, then keep that in float32."""
        self.job.prepare(loaded)
        self.place(loaded)

    def place_base(self, loaded: LoadedModel) -> None:
        """Give a base model its device, and its dtypes where it is known what the strategy will train."""
        if self.job.trained_base is None:
            loaded.module.to(self.accelerator.device)
        else:
            self.place(loaded)

    def predictions(self, loaded: LoadedModel, plan: EvalPlan, side: str) -> EvalResult:
        """Return what a model says of all that is measured; `side` is "base" or "tuned". All processes take part."""
        recipe = self.job.recipe
        size = recipe.evaluation.batch_size or recipe.train.batch_size
        runner = EvalRunner(self.accelerator, loaded, self.job.task, size, self.job.listener, side)
        return runner.run(plan)

    def evaluate(self, plan: EvalPlan, base: EvalResult, tuned: EvalResult) -> Evaluation:
        """Make the figures of both models from what they said."""
        self.job.listener.phase("figures")
        return evaluate(plan, base, tuned, self.job.task.name, self.job.task.labels)

    def trainer(
        self,
        loaded: LoadedModel,
        encoded: dict[str, EncodedSplit],
        run: RunDirectory,
        general: EncodedSplit | None = None,
        events: Callable[[Event], None] = lambda event: None,
    ) -> Trainer:
        """Make ready to train what the strategy left trainable; nothing is written yet."""
        job = self.job
        return Trainer(
            Setup(
                accelerator=self.accelerator,
                loaded=loaded,
                task=job.task,
                strategy=job.strategy,
                regularizers=job.regularizers,
                train=encoded["train"],
                validation=encoded.get("validation"),
                general=general,
                section=job.recipe.train,
                seed=job.recipe.seed,
                run=run,
                listener=job.listener,
                events=events,
            )
        )

    @contextmanager
    def inference(self, loaded: LoadedModel) -> Iterator[None]:
        """Run a model for its answers: no dropout, no gradients, the session's precision."""
        loaded.module.eval()
        with torch.no_grad(), self.accelerator.autocast():
            yield

    def environment(self, loaded: LoadedModel) -> dict[str, Any]:
        """Return what the run runs on, for environment.json."""
        strategy = self.job.strategy
        return {
            "versions": versions(),
            "plugins": plugin_origins(self.job.registry.plugins),
            "hardware": hardware(),
            "build": build(),
            "device": str(self.accelerator.device),
            "processes": self.accelerator.num_processes,
            "precision": {
                "compute": self.precision.name,
                "frozen_weights": str(self.precision.frozen).removeprefix("torch."),
                "reason": self.precision.reason,
            },
            "strategy": strategy.environment() if isinstance(strategy, ReportsEnvironment) else {},
            "base": {"source": loaded.source, **loaded.fingerprint},
        }

    def training_facts(self, loaded: LoadedModel, result: TrainingResult) -> dict[str, Any]:
        """Return what training came to, for training.json."""
        trained, total = count(loaded.module)
        return {
            **asdict(result),
            "trainable_parameters": trained,
            "total_parameters": total,
            "peak_memory_bytes": peak_memory_bytes(),
        }


def held_out(encoded: Mapping[str, Any]) -> str | None:
    """Return the split that figures are made on: test, else validation."""
    return next((name for name in ("test", "validation") if name in encoded), None)
