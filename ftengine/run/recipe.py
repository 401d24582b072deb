"""The recipe that a user writes, read from YAML; unknown keys are errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from ftengine.api import usual
from ftengine.errors import RecipeError
from ftengine.plugins.option_errors import explain
from ftengine.plugins.registry import to_choose_from
from ftengine.run.recipe_paths import found_beside
from ftengine.run.recipe_sources import Sources, listed, name_of
from ftengine.run.recipe_values import Bytes, Choice, HeldOut, Named, NamedList, Place, Text
from ftengine.run.yaml_text import content_of, key_and_value, require_bounded


class _Section(BaseModel, extra="forbid", validate_default=True, allow_inf_nan=False):
    pass


DType = Literal["auto", "float32", "bfloat16", "float16"]


class ModelSection(_Section):
    """The model and how to load it."""

    source: Place = Field(
        description="hub id, folder, .gguf file, package://NAME/FILE; with loader: callable, module:function",
    )
    loader: Named = Field({"name": "auto"}, description="auto takes the first loader that accepts the source")
    dtype: DType = Field("auto", description="dtype of frozen weights; auto follows train.precision")


By = Literal["random", "stratified", "group", "time"]


class SplitSection(_Section):
    """How rows of data.train are split if validation or test is a fraction, or there are folds."""

    meant: ClassVar[Mapping[str, str]] = dict.fromkeys(("kind", "method", "name", "strategy", "type"), "by")

    by: By = Field(
        "random",
        description="stratified keeps the proportions of labels, group keeps a column's values together, time holds "
        "out the latest rows",
    )
    column: str | None = Field(None, min_length=1, description="the column of groups, or of dates or numbers in time")
    duplicates: Literal["together", "apart"] = Field(
        "together", description="together keeps equal and near-equal rows in one split; apart allows any split"
    )
    folds: int | None = Field(None, ge=2, description="number of folds of train, of which one is the test split")
    fold: int = Field(0, ge=0, description="the fold that is the test split, from 0")

    @model_validator(mode="after")
    def _columns_and_folds(self) -> SplitSection:
        if self.by in ("group", "time") and self.column is None:
            raise ValueError(f"by: {self.by} needs column, the name of the column to split by")
        if self.by in ("random", "stratified") and self.column is not None:
            raise ValueError(f"column has no meaning with by: {self.by}; set by to group or time, or remove column")
        if self.folds is None and self.fold:
            raise ValueError("fold has no meaning without folds; set folds too")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}; {self.folds} folds are numbered 0 to {self.folds - 1}")
        if self.folds is not None and self.by == "time":
            raise ValueError("folds would train on the future of what they test; with by: time set folds to null")
        return self


def _by(value: Any) -> Any:
    return {"by": value} if isinstance(value, str) else value


class DataSection(_Section):
    """Where examples come from and how they are split."""

    train: Sources = Field(
        description=".jsonl .json .csv .tsv .parquet .arrow .txt, a folder of images, or a hub id; or several: "
        "[{source, weight, reader, columns}, …], weight is a source's share of an epoch"
    )
    reader: Named = Field({"name": "auto"}, description="auto takes the first reader that accepts the source")
    validation: HeldOut = Field(0.1, description="a fraction of train, a file, or null for none")
    test: HeldOut = Field(None, description="a fraction of train, a file, or null for none")
    split: Annotated[SplitSection, BeforeValidator(_by, json_schema_input_type=By | SplitSection)] = SplitSection()  # type: ignore[call-arg]
    group: str | None = Field(
        None,
        min_length=1,
        description="column of groups of rows (such as patients): each stays in one split and counts once in intervals",
    )
    leaks: Literal["auto", "fail", "drop", "warn"] = Field(
        "auto",
        description="rows of training that are also held out: fail, drop them from training, or warn; auto fails for "
        "equal rows and warns of near duplicates",
    )
    near_duplicates: float | None = Field(
        0.8, ge=0.5, le=1, description="least share of common words of near duplicates; null: only equal rows"
    )
    on_error: Literal["fail", "skip"] = Field("fail", description="what to do with a malformed row")
    columns: dict[str, str] = Field({}, description="rename columns: {the task's name: the file's name}")
    exclude: Place | None = Field(None, description="a file that lists rows to leave out; null for none")

    @property
    def train_name(self) -> str:
        """The sources of training in words."""
        return name_of(self.train)

    @property
    def weighted(self) -> bool:
        """Whether sources have weights."""
        return any(source.weight is not None for source in listed(self.train))

    @property
    def group_column(self) -> str | None:
        """The column of groups; None if rows are not grouped."""
        return self.split.column if self.split.by == "group" else self.group

    @model_validator(mode="after")
    def _one_group(self) -> DataSection:
        if self.split.by == "group" and self.group not in (None, self.split.column):
            problem = f"group is {self.group!r} and split.column {self.split.column!r}; rows have one column of groups"
            raise ValueError(f"{problem}. Remove group, or set split.by to random")
        return self

    @model_validator(mode="after")
    def _something_left(self) -> DataSection:
        taken = sum(part for part in (self.validation, self.test) if isinstance(part, float))
        if taken >= 1:
            raise ValueError(f"validation and test together take {taken:g} of the data; leave some for training")
        if self.split.folds is not None and self.test is not None:
            raise ValueError(
                "with data.split.folds the test split is one of the folds; set data.test to null (--set "
                "data.test=null); a test file stays untouched for the model that you train in the end"
            )
        # Groups and times of held-out files are compared with those of training; labels are not.
        files = self.split.by in ("group", "time") and (self.validation is not None or self.test is not None)
        if self.split.by != "random" and self.split.folds is None and not taken and not files:
            raise ValueError(
                f"data.split.by: {self.split.by} splits nothing; set data.validation or data.test to a fraction"
            )
        return self


class EarlyStopping(_Section):
    """Stop when the validation loss no longer falls."""

    patience: int = Field(2, ge=1, description="validations without improvement before training stops")
    min_delta: float = Field(0.0, ge=0, description="how much the validation loss must fall to count as an improvement")


class TrainSection(_Section):
    """How training runs."""

    epochs: float = Field(3, gt=0, description="passes over the training data")
    max_steps: int | None = Field(
        None, ge=1, description="stop after this many optimiser steps, if epochs do not end first"
    )
    batch_size: int = Field(8, ge=1, description="examples per micro-batch, on each device")
    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] | None = Field(
        "auto",
        description="most tokens in a micro-batch, with padding (a longer example is a batch of one); null: no limit",
    )
    sampling: Literal["shuffle", "balanced"] = Field(
        "shuffle",
        description="shuffle: each example once an epoch; balanced: as many draws, with equal shares of all labels",
    )
    accumulate: int = Field(1, ge=1, description="micro-batches per optimiser step (gradient accumulation)")
    learning_rate: float = Field(2e-4, gt=0, le=1e30, description="learning rate at its peak")
    optimizer: Named = Field({"name": "auto"}, description="auto takes the usual one: `ftengine plugins list`")
    weight_decay: float = Field(0.0, ge=0, le=1e6, description="of matrices alone", json_schema_extra=usual(0, 0.5))
    schedule: Named = Field({"name": "auto"}, description="schedule of the learning rate; auto takes the usual one")
    warmup: float = Field(0.03, ge=0, description="share of all steps if below 1, else a number of steps")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the gradient's norm; null for no clipping")
    validate_every: int | None = Field(
        None, ge=1, description="steps between validations; null: once an epoch, 20 times at most"
    )
    early_stopping: EarlyStopping | None = None
    keep_best: bool = Field(True, description="end with the weights of the best validation loss")
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; null: once an epoch, 20 times at most"
    )
    keep_checkpoints: int = Field(2, ge=1, description="complete checkpoints that are kept")
    precision: DType = Field("auto", description="compute dtype; auto: bfloat16 if the device multiplies it natively")
    gradient_checkpointing: bool | Literal["auto"] = Field(
        False,
        description="recompute activations in the backward pass to save memory; auto: only if memory_limit requires it",
    )
    memory_limit: Bytes | None = Field(
        None, description="memory limit per process, such as 6 GiB; null: the free memory, for auto"
    )
    fast_paths: Choice = Field("auto", description="faster computations: auto (all that suit), off (none), or names")
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**32,
        description="seed of batches, dropout, augmenters and new weights; null: the recipe's, which decides splits",
    )
    seeds: int = Field(1, ge=1, description="number of seeds to train, counted from seed; each is a run in output")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="with several processes: ddp, each holds the whole model; fsdp, a part of every parameter",
    )


def usual_learning_rate(of_strategy: float | None, share: float) -> float:
    """Return the learning rate that `init` and `compare` give a strategy.

    Args:
        of_strategy: the strategy's usual rate (`StrategyTraits.learning_rate`); None for the recipe's default.
        share: factor of the task (`TaskTraits.learning_rate_share`).
    """
    rate = (of_strategy or TrainSection.model_fields["learning_rate"].default) * share
    return float(f"{rate:.3g}")


class FurtherExamples(_Section):
    """Further examples that base and tuned model are measured on."""

    data: str = Field(min_length=1, description="a data file of the same task")
    limit: int | None = Field(500, ge=1, description="at most this many examples, sampled with seed; null for all")


FurtherData = Annotated[
    FurtherExamples | None,
    BeforeValidator(
        lambda value: {"data": value} if isinstance(value, str) else value,
        json_schema_input_type=Text | FurtherExamples | None,
    ),
]


class Memorisation(_Section, extra="allow"):
    """How memorisation is measured; further keys are options of its evaluator."""

    examples: int = Field(100, ge=2, description="at most this many training examples, and as many held-out ones")


class Generation(_Section, extra="allow"):
    """How answers are generated for evaluators; further keys are options of the task's predictions."""

    limit: int | None = Field(200, ge=1, description="answer at most this many examples, sampled with seed; null: all")

    @property
    def options(self) -> dict[str, Any]:
        """Options of the task's predictions."""
        return dict(self.model_extra or {})


class EvaluationSection(_Section):
    """How figures are computed, and further measurements."""

    batch_size: int | None = Field(None, ge=1, description="rows at a time; null: train.batch_size, more of short rows")
    resamples: int = Field(1000, ge=100, description="number of bootstrap resamples for each interval")
    training_sample: Literal["auto"] | Annotated[int, Field(ge=1)] | None = Field(
        "auto", description="training rows that are also measured; auto: as many as are held out, 50 to 200; null: none"
    )
    slices: list[str] = Field([], description="columns by whose values held-out figures are sliced")
    small_slice: int = Field(30, ge=1, description="slices with fewer examples are marked as small")
    robustness: NamedList = Field([], description="augmenters that disturb the held-out split, to measure robustness")
    forgetting: FurtherData = Field(None, description="general examples of the same task: a file, or {data, limit}")
    memorisation: Memorisation | None = Field(
        None, description="{examples: 100, …} to test whether training rows are reproduced; null: no"
    )
    refusal: FurtherData = Field(None, description="requests to refuse or to answer: a file, or {data, limit}")
    generate: Generation = Generation()  # type: ignore[call-arg]
    answers: int | None = Field(12, ge=1, description="held-out prompts whose answers the report shows; null: none")
    reuse_base: bool = Field(
        True,
        description="reuse the base model's outputs of an earlier run; evaluators judge them again",
    )


class Recipe(_Section):
    """A complete description of a run."""

    model: ModelSection
    task: Named
    data: DataSection
    strategy: Named
    augment: NamedList = Field([], description="augmenters of the training split, in order")
    regularize: NamedList = Field([], description="regularizers of the loss")
    train: TrainSection = TrainSection()  # type: ignore[call-arg]
    callbacks: NamedList = Field([], description="callbacks on steps, validations and figures, such as trackers")
    evaluate: NamedList = Field([], description="evaluators beyond the task's defaults")
    evaluation: EvaluationSection = EvaluationSection()  # type: ignore[call-arg]
    seed: int = Field(0, ge=0, lt=2**32, description="seed of splits, batches, dropout and new weights")
    output: Place = Field("runs/run", description="the run's folder; new or empty")

    _beside: dict[str, str] = PrivateAttr(default_factory=dict)
    _origin: str = PrivateAttr("")

    @property
    def training_seed(self) -> int:
        """The seed of what training draws; `seed` alone decides which rows are held out, measured and resampled."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def origin(self) -> str:
        """The file and the overrides that it was read from; "" if it was not read from a file."""
        return self._origin

    @property
    def beside(self) -> dict[str, str]:
        """Paths, by key, that were found in the recipe's folder and not in the working directory."""
        return self._beside

    @model_validator(mode="after")
    def _one_way_to_draw(self) -> Recipe:
        if self.train.sampling == "balanced" and self.data.weighted:
            raise ValueError("train.sampling is balanced and sources have weights; remove one of the two")
        return self

    @model_validator(mode="after")
    def _something_to_stop_on(self) -> Recipe:
        if self.train.early_stopping is not None and self.data.validation is None:
            raise ValueError(
                "train.early_stopping needs a validation split; set data.validation, or remove early_stopping"
            )
        return self

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe file.

        Its paths (data, model folder, output) are relative to the working directory. Data files and model folders that
        do not exist there are looked for in the recipe's folder.

        Args:
            overrides: "train.max_steps=40": dotted key, then a YAML value.

        Raises:
            RecipeError: the file is missing, is no YAML mapping, or a key or value is wrong.
        """
        path = Path(path)
        content, beside = found_beside(path, apply_overrides(content_of(path), overrides))
        origin = " ".join([str(path), *(["with"] if overrides else []), *map("--set {}".format, overrides)])
        recipe = cls.make(content, origin=origin)
        recipe._beside, recipe._origin = beside, origin
        return recipe

    @classmethod
    def make(cls, content: Mapping[str, Any], overrides: Sequence[str] = (), origin: str = "recipe") -> Recipe:
        """Validate a mapping with `key=value` overrides (RecipeError names the key, its value and what is allowed)."""
        content = apply_overrides(content, overrides)
        require_bounded(content, origin)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RecipeError(f"{origin}: {explain(error, cls)}{to_choose_from(error)}") from None

    def seeded(self) -> list[Recipe]:
        """Return the recipe of each of `train.seeds` seeds, whose folders are in `output`; of one seed, itself."""
        if self.train.seeds == 1:
            return [self]
        first = self.training_seed
        return [
            Recipe.make(
                self.resolved() | {"output": str(Path(self.output) / f"seed-{seed}")},
                [f"train.seed={seed}", "train.seeds=1"],
            )
            for seed in range(first, first + self.train.seeds)
        ]

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain values with every default written out."""
        return self.model_dump(mode="json")


def apply_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `content` with dotted `key=value` overrides applied; values are YAML."""
    result = deepcopy(dict(content))
    for override in overrides:
        key, value = key_and_value(override, "--set", "train.max_steps=40")
        *parents, last = key.split(".")
        place = result
        for i, step in enumerate(parents):
            inner = {} if place.get(step) is None else place[step]
            if isinstance(inner, str):  # a bare component name grows options: {name: NAME, …}
                inner = {"by" if parents[: i + 1] == ["data", "split"] else "name": inner}
            if not isinstance(inner, dict):
                raise RecipeError(f"--set {override!r}: {step!r} is not a mapping in this recipe.")
            place[step] = place = inner
        place[last] = value
    return result
