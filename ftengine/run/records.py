"""What a run writes down, a frozen model for each file, and all of them together."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Field

from ftengine.api import Display, Finding, Labels
from ftengine.errors import RecipeError, RunError
from ftengine.run.directory import SIDECAR, RunDirectory
from ftengine.run.evaluation_result import EvaluationResult, Examples
from ftengine.run.recipe import Recipe
from ftengine.run.record import Model, Part, Record, RedactedRecord, validated


class Skipped(Part):
    """Malformed rows that were left out: how many, and place and reason of the first."""

    count: int
    first: tuple[str, ...]


class SplitCounts(Part):
    """The rows of one split, as read from its source.

    Args:
        distinct: rows without the copies, which are its duplicates.
        near_duplicates: distinct rows that nearly repeat another of the split.
        skipped: malformed rows that were left out.
    """

    source: str
    rows: int
    distinct: int
    duplicates: int
    near_duplicates: int
    skipped: Skipped


def _with_training(splits: dict[str, Any]) -> dict[str, Any]:
    if "train" not in splits:
        raise ValueError("there is no training split")
    return splits


class AuditResult(RedactedRecord):
    """audit.json: what a run's data holds, and what is wrong with it.

    Args:
        split: how rows were divided, as the recipe says.
        encoded: for each split what the model gets: numbers of examples and tokens, percentiles of length, and a hash
            of the content, by which other data are noticed.
        findings: what the audits found, alarms first.
        displays: tables and charts of the audits.
        facts: what reading and dividing found, by name.
    """

    file: ClassVar[str] = "audit.json"
    splits: Annotated[dict[str, SplitCounts], AfterValidator(_with_training)]
    split: dict[str, Any]
    encoded: dict[str, dict[str, Any]]
    findings: tuple[Finding, ...]
    displays: tuple[Display, ...]
    facts: dict[str, Any]

    @property
    def contents(self) -> dict[str, str]:
        """Hash of the content of each split."""
        return {name: counts["content"] for name, counts in self.encoded.items()}


class Computation(Part):
    """In what precision was computed, and why."""

    compute: str
    frozen_weights: str
    reason: str


class Memory(Part):
    """Whether activations are computed twice, and why; what a process was expected to hold at most, and its limit."""

    gradient_checkpointing: bool
    reason: str
    peak_bytes: int | None = None
    limit_bytes: int | None = None


class FastPathUse(Part):
    """Whether a fast path was active, what it replaced and how many of that, and why it was not."""

    active: bool
    replaced: dict[str, int] = Field(default_factory=dict)
    reason: str = ""


class Environment(Record):
    """environment.json: what a run ran on.

    Args:
        versions: of what matters, None for what is absent.
        plugins: distribution, version and status of each.
        hardware, build: of the machine and of the compiled kernels.
        device, processes, precision: of the training.
        strategy: what the strategy says of how it computes.
        base: source and fingerprint of the base model.
        launch: torchrun's name of the launch that began the run, None for no torchrun.
        memory: whether activations are computed twice, and why; None in runs of before there was a choice.
        fast_paths: what each fast path did, by name; none with `train.fast_paths: off`.
        code: a hash of each file of the user's code that measures answers, by its name; None in runs of before.
        date: the day on which it began, which the model's chat template writes wherever its models are asked; None in
            runs of before.
    """

    file: ClassVar[str] = "environment.json"
    versions: dict[str, str | None]
    plugins: tuple[dict[str, str], ...]
    hardware: dict[str, Any]
    build: dict[str, Any]
    device: str
    processes: int
    precision: Computation
    strategy: dict[str, Any]
    base: dict[str, Any]
    launch: str | None = None
    memory: Memory | None = None
    fast_paths: dict[str, FastPathUse] = Field(default_factory=dict)
    code: dict[str, str] | None = None
    date: datetime.date | None = None


class TrainingResult(Record):
    """training.json: what training came to.

    Args:
        steps, planned_steps: optimiser steps done, and those that the recipe asked for.
        stopped_early: whether early stopping ended it.
        best_step, best_loss: of the lowest validation loss; None without validation.
        seconds: training time, validation included.
        regularizers: what each regularizer did to the weights that are kept, under its name.
        peak_memory_bytes: the most that the process held.
        examples_per_second, tokens_per_second: over all steps, without validations; None in runs of older versions.
        kernels: what computes, where the strategy says so (`Strategy.environment`).
        phases: seconds of each phase of the command that finished the run, up to the check of what was saved.
    """

    file: ClassVar[str] = "training.json"
    steps: int = Field(ge=0)
    planned_steps: int = Field(ge=0)
    stopped_early: bool
    best_step: int | None = Field(ge=0)
    best_loss: float | None
    seconds: float = Field(ge=0, allow_inf_nan=False)
    regularizers: tuple[dict[str, Any], ...]
    trainable_parameters: int
    total_parameters: int
    peak_memory_bytes: int
    examples_per_second: float | None = None
    tokens_per_second: float | None = None
    kernels: str | None = None
    phases: dict[str, float] = Field(default_factory=dict)


class TrainedPart(Record):
    """adapter/ftengine.json: how a trained part is loaded again; it lies in the trained part's own folder.

    Args:
        ftengine: version.
        base: source and fingerprint of the base model.
        strategy, task: names and options.
        labels: what the task learnt; None where it has no labels.
        new_modules: modules that were newly initialised.
        calibration: what the task fitted on the validation split, by which `predict --calibrated` answers.
        uncalibrated: why there is nothing of that; "" where there is.
        files: SHA-256 of the trained part's other files, as they were checked, by name.
        check: whether the files were opened on a fresh base and gave the tuned model back: "passed", "failed", or
            "pending", where the run ended before that.
        unchecked: why the check failed or was not made; "" where it passed.
    """

    file: ClassVar[str] = SIDECAR
    ftengine: str | None
    base: dict[str, Any]
    strategy: dict[str, Any]
    task: dict[str, Any]
    labels: Labels | None
    new_modules: tuple[str, ...]
    calibration: dict[str, Any] = Field(default_factory=dict)
    uncalibrated: str = ""
    files: dict[str, str] = Field(default_factory=dict)
    check: Literal["passed", "pending", "failed"] = "passed"
    unchecked: str = ""


class Verdict(RedactedRecord):
    """verdict.json: a headline, its level, and all findings.

    First those that the headline is made of, up to the first of kind "quality", then alarms first; last those that
    follow from another one (`explained_by`).
    """

    file: ClassVar[str] = "verdict.json"
    headline: str
    level: Literal["alarm", "note", "good"]
    findings: tuple[Finding, ...]

    @property
    def lead(self) -> tuple[Finding, ...]:
        """The findings that the headline is made of: that of quality, and before it what explains it."""
        return self.findings[: 1 + next((i for i, one in enumerate(self.findings) if one.kind == "quality"), 0)]

    @property
    def quality(self) -> Finding:
        """The worst that is true of the model's quality."""
        return self.lead[-1]

    @property
    def rest(self) -> tuple[Finding, ...]:
        """The findings behind the headline's."""
        return self.findings[len(self.lead) :]


class Step(BaseModel, frozen=True):
    """A line of metrics.jsonl: one optimiser step."""

    step: int
    loss: float
    learning_rate: float
    trained_tokens: int = 1
    examples: int = 0


class Validation(BaseModel, frozen=True):
    """A line of metrics.jsonl: a validation, and the loss on training examples measured likewise."""

    step: int
    validation_loss: float
    training_loss: float | None = None


@dataclass(frozen=True)
class RunRecords:
    """All that a finished run wrote.

    Args:
        path: the run's folder.
        recipe: recipe.yaml.
        environment, audit, training, evaluation: the JSON files of these names.
        trained: adapter/ftengine.json.
        lines: metrics.jsonl, a mapping a line.
        examples: examples.json; None without held-out examples.
    """

    path: Path
    recipe: Recipe
    environment: Environment
    audit: AuditResult
    training: TrainingResult
    evaluation: EvaluationResult
    trained: TrainedPart
    lines: tuple[dict[str, Any], ...] = ()
    examples: Examples | None = None

    @classmethod
    def read(cls, path: str | Path) -> RunRecords:
        """Read a run's folder (RunError: there is no finished run, or a file is damaged or of another version)."""
        run = RunDirectory(path)
        run.require_finished("audit.json", "environment.json", "metrics.jsonl", "training.json", "evaluation.json")
        try:
            recipe = Recipe.read(run.path / "recipe.yaml")
        except RecipeError as error:
            raise RunError(str(error)) from None
        audit = AuditResult.read(run)
        if "train" not in audit.encoded:
            raise RunError(f"{str(run.path / AuditResult.file)!r}: encoded: there is no training split. It is damaged.")
        return cls(
            path=run.path,
            recipe=recipe,
            environment=Environment.read(run),
            audit=audit,
            training=TrainingResult.read(run),
            evaluation=EvaluationResult.read(run),
            trained=TrainedPart.read(RunDirectory(run.trained)),
            lines=tuple(run.metrics()),
            examples=Examples.read(run) if (run.path / Examples.file).is_file() else None,
        )

    @cached_property
    def steps(self) -> list[Step]:
        """The training steps, in order."""
        return self._read(Step, "loss")

    @cached_property
    def validations(self) -> list[Validation]:
        """The validations, in order."""
        return self._read(Validation, "validation_loss")

    def _read(self, model: type[Model], key: str) -> list[Model]:
        return [validated(model, line, self.path / "metrics.jsonl") for line in self.lines if key in line]

    @property
    def kept_step(self) -> int:
        """The step whose weights the run kept."""
        best = self.training.best_step
        return best if best is not None and self.recipe.train.keep_best else self.training.steps

    @property
    def headline_metric(self) -> str | None:
        """The metric that the verdict goes by; None without held-out figures."""
        return self.evaluation.headline_metric
