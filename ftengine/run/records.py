"""The files of a run, each a frozen model, and `RunRecords`, which reads all of them."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Field

from ftengine.api import Display, Finding, Labels
from ftengine.errors import RecipeError, RunError
from ftengine.plugins.registry import Registry
from ftengine.run.directory import SIDECAR, RunDirectory
from ftengine.run.evaluation_result import EvaluationResult, Examples
from ftengine.run.recipe import Recipe
from ftengine.run.record import Model, Part, Record, RedactedRecord, validated
from ftengine.run.unusual import UnusualOption, unusual_options


class Skipped(Part):
    """Malformed rows that were skipped: their number, and places and reasons of the first."""

    count: int
    first: tuple[str, ...]


class SplitCounts(Part):
    """The rows of one split, as read from its source.

    Args:
        distinct: number of rows without copies; `duplicates` counts the copies.
        near_duplicates: distinct rows that nearly repeat another of the split.
        skipped: malformed rows that were left out.
        excluded: rows that `data.exclude` left out.
    """

    source: str
    rows: int
    distinct: int
    duplicates: int
    near_duplicates: int
    skipped: Skipped
    excluded: int = 0


def _with_training(splits: dict[str, Any]) -> dict[str, Any]:
    if "train" not in splits:
        raise ValueError("there is no training split")
    return splits


class AuditResult(RedactedRecord):
    """audit.json: counts and findings about a run's data.

    Args:
        split: the recipe's section on how rows are split.
        encoded: for each split, the encoded examples: numbers of examples and tokens, percentiles of length, and a
            hash of the content, which shows a change of the data.
        findings: findings of the audits, alarms first.
        displays: tables and charts of the audits.
        facts: facts from reading and splitting, by name.
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
    """The precision of a run, and why it was chosen."""

    compute: str
    frozen_weights: str
    reason: str


class Memory(Part):
    """Whether activations are recomputed, and why; the expected peak of a process, and its limit."""

    gradient_checkpointing: bool
    reason: str
    peak_bytes: int | None = None
    limit_bytes: int | None = None


class FastPathUse(Part):
    """Whether a fast path was active, how many modules of each kind it replaced, or why it was not active."""

    active: bool
    replaced: dict[str, int] = Field(default_factory=dict)
    reason: str = ""


class Environment(Record):
    """environment.json: the environment of a run.

    Args:
        versions: versions of Python and packages; None for one that is not installed.
        plugins: distribution, version and status of each plugin.
        hardware, build: facts about the machine and the compiled kernels.
        device, processes, precision: where and how training computes.
        strategy: facts of the strategy about how it computes.
        base: source and fingerprint of the base model.
        launch: torchrun's id of the launch that began the run; None without torchrun.
        memory: whether activations are recomputed, and why; None in runs of older versions.
        fast_paths: the use of each fast path by name; empty with `train.fast_paths: off`.
        code: hashes of the files of the user's code that judges answers, by name; None in runs of older versions.
        date: the day on which the run began, which chat templates write into prompts; None in runs of older versions.
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
    """training.json: the result of training.

    Args:
        steps, planned_steps: optimiser steps done, and those that the recipe asks for.
        stopped_early: whether early stopping ended training.
        best_step, best_loss: step and value of the lowest validation loss, of an on-policy task of minus the highest
            validation reward; None without validation.
        seconds: training time, validation included.
        regularizers: facts of each regularizer about the final weights, with its name.
        peak_memory_bytes: peak memory of the process.
        examples_per_second, tokens_per_second: over all steps, without validations; None in runs of older versions.
        kernels: the kernels in use, if the strategy reports them (`Strategy.environment`).
        phases: seconds of each phase of the command that finished the run, up to the check of the saved part.
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
    """adapter/ftengine.json: how to load a trained part, in the folder of the trained part.

    Args:
        ftengine: version.
        base: source and fingerprint of the base model.
        strategy, task: names and options.
        labels: labels of the task; None if it has none.
        new_modules: modules that were newly initialised.
        calibration: parameters that the task fitted on the validation split, for `predict --calibrated`.
        uncalibrated: why there is no calibration; "" if there is one.
        files: SHA-256 of the trained part's other files, by name, as they were checked.
        check: whether the files, loaded on a fresh base, gave the tuned model back: "passed", "failed", or "pending"
            if the run ended before.
        unchecked: why the check failed or is pending; "" if it passed.
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

    The findings of the headline come first, up to the first of kind "quality"; the others follow, alarms first, and
    those that another finding explains (`explained_by`) last.
    """

    file: ClassVar[str] = "verdict.json"
    headline: str
    level: Literal["alarm", "note", "good"]
    findings: tuple[Finding, ...]

    @property
    def lead(self) -> tuple[Finding, ...]:
        """The findings of the headline: the finding of quality, preceded by those that explain it."""
        return self.findings[: 1 + next((i for i, finding in enumerate(self.findings) if finding.kind == "quality"), 0)]

    @property
    def quality(self) -> Finding:
        """The finding of kind "quality": the worst that holds."""
        return self.lead[-1]

    @property
    def rest(self) -> tuple[Finding, ...]:
        """The findings after those of the headline."""
        return self.findings[len(self.lead) :]


class Step(BaseModel, frozen=True):
    """A line of metrics.jsonl: one optimiser step."""

    step: int
    loss: float
    learning_rate: float
    trained_tokens: int = 1
    examples: int = 0


class Validation(BaseModel, frozen=True):
    """A line of metrics.jsonl: the loss on validation examples, and in the same way on training examples."""

    step: int
    validation_loss: float
    training_loss: float | None = None


@dataclass(frozen=True)
class RunRecords:
    """All files of a finished run.

    Args:
        path: the run's folder.
        recipe: recipe.yaml.
        environment, audit, training, evaluation: the JSON files of these names.
        trained: adapter/ftengine.json.
        lines: metrics.jsonl, one mapping for each line.
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
        """Read a run's folder (RunError: the run is not finished, or a file is damaged or of another version)."""
        run = RunDirectory(path)
        run.require_finished("audit.json", "environment.json", "metrics.jsonl", "training.json", "evaluation.json")
        try:
            recipe = Recipe.read(run.path / "recipe.yaml")
        except RecipeError as error:
            raise RunError(str(error)) from None
        audit = AuditResult.read(run)
        if "train" not in audit.encoded:
            raise RunError(
                f"{str(run.path / AuditResult.file)!r}: encoded: there is no training split. The file is damaged."
            )
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

    def unusual_options(self) -> list[UnusualOption]:
        """Return the recipe's numbers outside their usual range, of components that are installed."""
        return [*unusual_options(self.recipe, Registry())]

    @property
    def headline_metric(self) -> str | None:
        """The metric of the verdict; None without held-out figures."""
        return self.evaluation.headline_metric
