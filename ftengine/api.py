"""The contracts: what a plugin implements, and the small objects that cross between rooms.

Nothing here imports torch at run time, so that `--help`, `plugins list` and recipe errors stay fast.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from ftengine.errors import DataError, InputError, NotMergeable, RecipeError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

Example = Mapping[str, Any]
"""One row of the user's data, by column name."""

Features = dict[str, Any]
"""One encoded example: plain Python lists and numbers, ready for `Task.collate`."""

Batch = dict[str, Any]
"""A collated batch: tensors by name, leading dimension = number of examples."""

Prediction = dict[str, Any]
"""What a task says of one example, in plain Python values; evaluators read it by key."""


class Config(BaseModel):
    """Options of a component. Unknown keys are errors; the field's description is its help text."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class Component:
    """Anything with a name that a user can choose in a recipe.

    Subclasses set `name`, may replace `Config`, and start their docstring with the line that
    `ftengine plugins list` shows. A component is built with its validated config.
    """

    name: ClassVar[str]
    Config: ClassVar[type[BaseModel]] = Config
    starter: ClassVar[bool] = False
    """Whether `ftengine init` proposes it among its kind."""

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()


@dataclass(frozen=True)
class Labels:
    """What a classification head predicts.

    Args:
        kind: "single" (one of `names`), "multi" (any subset of `names`) or "regression" (a number).
        names: label names in id order; for regression one name an output.
    """

    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class LoadRequest:
    """What a task and a recipe ask of a model loader.

    Args:
        source: the recipe's `model.source`, untouched.
        head: what the task needs on top: "causal-lm", "seq2seq-lm", "sequence-classification", ….
        labels: the classification targets, or None where the task has none.
        dtype: "auto" or a torch dtype's name; "auto" keeps what the checkpoint holds.
        skeleton: build the module on the meta device, without reading weights.
        processor: whether the processor is needed; without it a config is enough for a skeleton.
    """

    source: str
    head: str
    labels: Labels | None = None
    dtype: str = "auto"
    skeleton: bool = False
    processor: bool = True


@dataclass
class LoadedModel:
    """A model as the strategy receives it.

    Args:
        module: the torch module; every parameter arrives with requires_grad as the loader left it.
        processor: tokenizer, image processor or feature extractor that goes with it.
        source: where it came from.
        head: the head that was asked for.
        new_modules: names of modules that were initialised afresh (a classifier head). They train
            and are saved under every strategy.
        labels: the classification targets, or None.
        fingerprint: identity of the base weights and of the processor; the engine fills it in.
        max_length: longest input in tokens that the model accepts, or None where it has no limit.
        pretrained: names of the parameters that came with the base, as they are called after the strategy
            prepared it; the engine fills it in.
    """

    module: nn.Module
    processor: Any
    source: str
    head: str
    new_modules: tuple[str, ...] = ()
    labels: Labels | None = None
    fingerprint: dict[str, str] = field(default_factory=dict)
    max_length: int | None = None
    pretrained: frozenset[str] = frozenset()


class ModelLoader(Component):
    """Turns a model source into a module and its processor."""

    skeletons: ClassVar[bool] = True
    """Whether `load` honours `LoadRequest.skeleton`; without it, patterns are checked only after loading."""

    def accepts(self, source: str) -> bool:
        """Say whether this loader can read `source`; must be quick and must not raise."""
        raise NotImplementedError

    def check(self, source: str) -> None:
        """Find out, without reading weights, whether the source can be loaded.

        Raises:
            SourceError: something is missing, or the files are of a kind that is not read.
        """

    def load_processor(self, source: str) -> Any:
        """Load the tokenizer (or image processor) alone, so that data is checked before the model loads."""
        raise NotImplementedError

    def load(self, request: LoadRequest) -> LoadedModel:
        """Load the model.

        Raises:
            SourceError: nothing can be loaded from the source.
        """
        raise NotImplementedError


class Task(Component):
    """Says what an example looks like, how it is encoded, and what the loss is."""

    head: ClassVar[str]
    """What the loader puts on top of the model."""
    default_evaluators: tuple[str, ...] = ()
    """Evaluators that every run of this task uses; may depend on what `bind` learns."""
    predicts: frozenset[str] = frozenset()
    """Keys that every `Prediction` of this task has; an evaluator needs a subset of them."""
    labels: Labels | None = None
    """Classification targets; set by `bind`."""
    unit: ClassVar[str] = "tokens"
    """What "length" counts, in the plural."""
    paths: tuple[str, ...] = ()
    """Columns that hold paths of files; in a data file they are relative to that file."""
    modality: ClassVar[str] = "text"
    """What the model reads of an example, and `rewrite` hands out: "text" or "image"."""
    smooths: bool = False
    """Whether `loss` honours `label_smoothing` in training mode; may depend on what `bind` learns."""
    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over all classes; set by a regularizer."""
    compares: bool = False
    """Whether `divergence` is there: what the model says are distributions; may depend on what `bind` learns."""
    keeps_pass: bool = False
    """Whether `loss` keeps what `divergence` compares with; set by a regularizer."""
    answers: frozenset[str] = frozenset()
    """Keys of what `answer` predicts; empty where the task's predictions are all that there is."""

    def check(self, columns: Sequence[str]) -> None:
        """Refuse data whose columns this task cannot use.

        Raises:
            DataError: names the columns found and the shapes of row that are allowed.
        """

    def bind(self, splits: Mapping[str, Iterable[Example]]) -> None:
        """Learn labels (and whatever else depends on the data) from the training split.

        `splits` holds "train" and, where present, "validation" and "test"; a label that occurs only
        outside of training is an error.
        """

    def state(self) -> dict[str, Any]:
        """Return what `bind` learnt, as JSON values; `restore` takes it back."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set what `bind` learnt in an earlier run."""

    def identity(self, example: Example) -> Any:
        """Return what makes two examples duplicates (a JSON value): by default all of the row."""
        return dict(example)

    def texts(self, example: Example) -> list[str]:
        """Return all text of an example, for the audit; by default every text in its columns."""
        return [value for value in example.values() if isinstance(value, str)]

    def target(self, example: Example) -> Any:
        """Return what is to be answered (a JSON value), where equal examples should have equal targets; else None.

        The audit counts contradictions and the balance of labels by it, and stratified splits follow it.
        """
        return None

    def wanted(self, example: Example) -> Any:
        """Return what a model is to say of an example, to be compared with ==; by default its target.

        Figures before and after a change of the example are of one question only where this stays the same.
        """
        return self.target(example)

    def rewrite(self, example: Example, change: Callable[[Any], Any]) -> Example:
        """Return the example with what the model reads, and not what it is to answer, changed.

        Args:
            example: a row; it stays as it is.
            change: called once for each text (a str, never empty) or image (as PIL has it, in RGB or L).

        Raises:
            DataError: the row cannot be read.
            InputError: this task's examples cannot be changed.
        """
        raise InputError(f"examples of task {self.name!r} cannot be augmented. Take recipe key 'augment' out.")

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Encode one example; `max_length` is the model's limit in tokens.

        The result has at least "length" (tokens), "weight" (what this example adds to the loss's
        denominator, e.g. label tokens; 0 means that nothing of it is trained on) and "truncated" (bool).
        "full_length" is the tokens before cutting, of which `plan` shows the distribution.
        Where the model reads several sequences of an example, "longest" is the longest of them, for the model's limit.

        Raises:
            DataError: the row lacks a field or holds a value of the wrong kind.
        """
        raise NotImplementedError

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Pad and stack features into tensors."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return (sum of losses, its weight); the engine divides once, by the whole effective batch's weight."""
        raise NotImplementedError

    def smoothing(self, model: nn.Module) -> float:
        """Return the share of the target's probability that `loss` spreads now: `label_smoothing` in training mode."""
        return self.label_smoothing if self.label_smoothing and model.training else 0.0

    def divergence(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model on the batch of the last `loss` once more, where `keeps_pass` was set before it.

        Returns:
            The second pass's loss, and half the sum of both Kullback-Leibler divergences between the distributions
            of the two passes; both means over what `loss` sums over, with gradients to both passes.
        """
        raise NotImplementedError

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return one prediction an example, in the batch's order; called without gradients."""
        raise NotImplementedError

    def outputs(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the model's raw outputs (logits) for a batch; `merge` compares them before and after."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        result = model(**inputs)
        return result.logits if hasattr(result, "logits") else result

    def probe(self, loaded: LoadedModel) -> Batch:
        """Return a small batch made without data, which exercises the model's layers.

        By default random tokens, and at the end of each row, nowhere else, the token that ends texts: classifiers of
        encoder-decoders read its state.
        """
        import torch

        generator = torch.Generator().manual_seed(0)
        module: Any = loaded.module
        tokens = module.get_input_embeddings().num_embeddings
        ids = torch.randint(tokens, (2, 16), generator=generator)
        end = getattr(getattr(module, "config", None), "eos_token_id", None)
        if isinstance(end, int) and end < tokens:
            ids[ids == end] = (end + 1) % tokens
            ids[:, -1] = end
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def infer(
        self, loaded: LoadedModel, examples: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Answer raw examples without labels: what `ftengine predict` writes, one mapping an example.

        `options` are the task's own (`max_new_tokens`, …); unknown ones are an InputError.
        """
        raise NotImplementedError

    def answer(
        self, loaded: LoadedModel, examples: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return what the model answers freely beside what was to be answered: `answers` keys, one mapping an example.

        Only evaluators that read such keys have it called; `options` are those of `infer`.
        """
        raise NotImplementedError

    def readable(self, prediction: Prediction) -> dict[str, Any]:
        """Return a prediction as a reader should see it (JSON values): names instead of ids, nothing that is long."""
        return dict(prediction)

    def check_input(self, example: Example) -> None:
        """Refuse an example that `infer` cannot answer.

        Raises:
            DataError: says what is missing.
        """

    def show(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode an encoded example into (text, is trained on) pieces, for `ftengine plan`."""
        return []


class Strategy(Component):
    """Decides which parameters train. After `prepare`, requires_grad is the only truth."""

    def prepare(self, loaded: LoadedModel) -> None:
        """Add modules to `loaded.module` or freeze parts of it, so that requires_grad says what trains.

        `loaded.new_modules` need no attention: the engine makes them trainable afterwards.

        Raises:
            NoMatch: a pattern matches no module; the message shows close names.
        """
        raise NotImplementedError

    def matches(self) -> dict[str, list[str]]:
        """Return the modules that each pattern matched in `prepare`, for `ftengine plan`."""
        return {}

    def environment(self) -> dict[str, Any]:
        """Return what a run should record of how this strategy computes (kernel path and the reason)."""
        return {}

    def reopened(self) -> dict[str, Any]:
        """Return the options under which a finished run is prepared again, e.g. without where it started from."""
        return self.config.model_dump(mode="json")

    def param_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups over trainable parameters.

        The default decays matrices and leaves vectors (biases, norms) alone.
        """
        from ftengine.parameters import default_param_groups

        return default_param_groups(model, learning_rate, weight_decay)

    def resting(self, model: nn.Module, step: int, steps: int, steps_per_epoch: int) -> Iterable[nn.Parameter]:
        """Return trainable parameters that are left out of a training step, as gradual unfreezing does.

        They train in other steps, so they count as trainable. The answer must follow from the arguments
        alone: a resumed run asks again.

        Args:
            model: the prepared model.
            step: optimiser steps done before this one.
            steps: all optimiser steps of the run.
            steps_per_epoch: those of a whole epoch.
        """
        return ()

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write the trained part to an existing empty directory, in its ecosystem's format.

        The default writes every trainable tensor, and the statistics that move with them, by name, to
        `trained.safetensors`.
        """
        from ftengine.parameters import save_trained

        save_trained(loaded.module, directory)

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read back what `save` wrote into a model that `prepare` has seen.

        Raises:
            BaseMismatch: keys are missing or unexpected, or a shape differs.
        """
        from ftengine.parameters import load_trained

        load_trained(loaded.module, directory)

    def check_merge(self) -> None:
        """Refuse to merge before any model is loaded; by default where the class has no `merge` of its own.

        Raises:
            NotMergeable: this strategy, with these options, has no merged form.
        """
        if type(self).merge is Strategy.merge:
            raise _without_merge(self.name)

    def merge(self, loaded: LoadedModel) -> None:
        """Fold the trained part into the base weights, leaving the original architecture.

        Raises:
            NotMergeable: this strategy (or this base) has no such form.
        """
        raise _without_merge(self.name)


def _without_merge(name: str) -> NotMergeable:
    return NotMergeable(
        f"strategy {name!r} cannot be merged into its base: it changes more than weights. "
        "Serve the base with the trained part instead."
    )


class RandomSource(Protocol):
    """The part of `random.Random` that augmenters use."""

    def random(self) -> float: ...
    def choice(self, seq: Sequence[Any]) -> Any: ...
    def randrange(self, start: int, stop: int | None = None) -> int: ...


class Augmenter(Component):
    """Makes training examples from a training example; never sees validation or test rows."""

    modality: ClassVar[str | None] = None
    """What it changes, "text" or "image"; None where it takes any example."""
    task: Task
    """The task whose examples it is given."""

    def bind(self, task: Task) -> None:
        """See the task, after it learnt its labels and before the first example.

        Raises:
            RecipeError: examples of this task are not of this augmenter's kind.
        """
        if self.modality is not None and self.modality != task.modality:
            raise RecipeError(
                f"augmenter {self.name!r} changes {self.modality}s, and examples of task {task.name!r} are "
                f"{task.modality}s. Take it out of the recipe."
            )
        self.task = task

    def bind_processor(self, processor: Any) -> None:
        """See the tokenizer or image processor, after `bind` and before the first example.

        Raises:
            RecipeError: it lacks what this augmenter needs of it.
        """

    def augment(self, example: Example, rng: RandomSource) -> Iterable[Example]:
        """Yield the examples that replace this one; `rng` is a function of (seed, epoch, row) alone.

        Where none of them can be encoded and trained on, the example stays as it is.
        """
        yield example

    def mix(self, batch: Batch, rng: RandomSource) -> Batch:
        """Return a collated training batch with its examples mixed; `rng` is a function of (seed, epoch, rows).

        Every micro-batch is mixed by itself.
        """
        return batch


class Regularizer(Component):
    """Adds a penalty to the loss, or changes the model while it trains.

    Randomness comes from torch's global generators, which the loop seeds for every step.
    """

    needs_validation: bool = False
    """Whether it cannot do without a validation split; may depend on the options."""
    replaces_weight_decay: ClassVar[bool] = False
    """Whether it pulls weights somewhere itself, so that `train.weight_decay` has to be 0 beside it."""

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        """See the model, after the strategy prepared it and before the first step.

        It is called on a skeleton (parameters on the meta device) as well, and detached again, so that what cannot
        work is refused before weights are read; another object then sees the model itself.

        Raises:
            RecipeError: this model or task cannot be regularized so.
        """

    def penalty(self, model: nn.Module, batch: Batch, loss: torch.Tensor) -> torch.Tensor | None:
        """Return a scalar that is added to the mean loss of a micro-batch, or None for nothing.

        The loop weights it as that loss, by the micro-batch's share of the effective batch: what does not depend on
        the batch counts exactly once a step, and a mean over examples (or labels) becomes one over all of them.
        """
        return None

    def stepped(self, model: nn.Module, step: int) -> None:
        """See the model after an optimiser step; `step` counts from 1."""

    def evaluating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Give the model the weights that it would keep, while it is validated and its best weights are saved."""
        return nullcontext()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint has to hold for this regularizer, by name; `restore` takes it back."""
        return {}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set what `tensors` returned when the checkpoint was written."""

    def finish(self, model: nn.Module, measure: Callable[[], Mapping[str, float]]) -> dict[str, Any]:
        """Change the weights that are kept, after the last step; return what a reader should know (JSON values).

        Args:
            model: with the weights that training would keep.
            measure: measures the model as it is now, lower is better: {"validation_loss": …}, and "general_loss"
                where the recipe names general data to watch for forgetting; empty without validation.
        """
        return {}

    def detach(self, loaded: LoadedModel) -> None:
        """Undo `attach` (hooks, wrapped modules) before the model is saved, and when training fails."""


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluator may know beside the predictions."""

    task: str
    labels: Labels | None = None


@dataclass(frozen=True)
class Judgement:
    """How well one example was answered.

    Args:
        score: higher is better; comparable between models on the same example.
        right: whether the answer is right, where it can be right or wrong.
    """

    score: float
    right: bool | None = None


class Evaluator(Component):
    """Measures predictions. Its figures are functions of sums over examples.

    One example gives a row of S numbers (`statistics`); a metric is a function of the rows' sum
    (`metrics`). The engine adds rows up as a stream, so memory does not grow with the data, resamples
    the sums for intervals (Poisson bootstrap, Chamandy et al. 2012), and compares tuned and base on the
    same resamples, which pairs them by example.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    """Keys of `Prediction` that `statistics` needs."""
    higher_is_better: ClassVar[Mapping[str, bool | None]] = {}
    """For each metric, whether more is better; None where neither more nor less is.

    Where the labels decide which are reported, `bind` sets it anew."""

    columns: ClassVar[frozenset[str]] = frozenset()
    """Columns of the user's row that `statistics` finds in the prediction too, None where the row has none."""
    generation: Mapping[str, Any] | None = None
    """Options of `Task.answer` that this evaluator asks for, e.g. {"max_new_tokens": 64}."""
    biased: ClassVar[frozenset[str]] = frozenset()
    """Metrics that noise makes larger, and resampling larger still: they get no interval rather than a wrong one."""
    per_model: ClassVar[frozenset[str]] = frozenset()
    """Metrics that rank, bin or correlate what one model says of many examples: they mean nothing over the answers of
    several models, so cross-validation gives them fold by fold only."""

    def check(self, example: Example) -> None:
        """Refuse a row whose `columns` hold what this evaluator cannot read; called before a model loads.

        Raises:
            DataError: says what is allowed.
        """

    def bind(self, context: EvaluationContext) -> None:
        """Learn the labels before the first prediction."""

    fits: ClassVar[bool] = False
    """Whether `fit` has to see the model's predictions on validation before anything is measured."""

    def fit(self, predictions: Iterable[Prediction] | None) -> None:
        """Learn from validation predictions, a stream; None where no validation split is left to learn from."""

    def lean(self) -> Evaluator:
        """Return an evaluator of those figures that need few statistics; each slice of the data has sums of its own.

        Called after `bind`; the first metric has to be among them.
        """
        return self

    def judge(self, prediction: Prediction) -> Judgement | None:
        """Say how well one example was answered; None where this evaluator does not judge single examples."""
        return None

    def statistics(self, prediction: Prediction) -> Sequence[float]:
        """Return this example's S numbers; S is the same for every example."""
        raise NotImplementedError

    def metrics(self, sums: np.ndarray) -> Mapping[str, np.ndarray]:
        """Turn sums of shape (..., S) into metrics of shape (...); nan where undefined."""
        raise NotImplementedError

    def counts(self, prediction: Prediction) -> Iterable[Hashable]:
        """Return what to count of this example, without resampling, e.g. its cell of a confusion matrix."""
        return ()

    def trials(self, sums: np.ndarray) -> Mapping[str, float]:
        """Return, for each metric that is a proportion, the most trials behind it, from the sums of shape (S,).

        Those metrics get score intervals, which keep a width at 0 and 1.
        """
        return {}

    def sizes(self, sums: np.ndarray) -> Mapping[str, float]:
        """Return, for metrics in which examples weigh unequally, how many of equal weight they are worth, from (S,).

        (Σw)² / Σw² for weights w (Kish 1965, Survey Sampling, §8.2). Intervals are as wide as for so many.
        """
        return {}

    def excess(self, sums: np.ndarray) -> Mapping[str, tuple[np.ndarray, float]]:
        """Return, for each metric that is a mean minus a proportion, that proportion and the most trials behind it.

        The proportion has the metric's shape (...), from sums of shape (..., S). The interval is made of the mean's
        and the proportion's, so that it keeps a width where resamples hardly ever hold a failure.
        """
        return {}

    def details(self, sums: np.ndarray, counts: Mapping[Hashable, int]) -> Mapping[str, Any]:
        """Return further JSON values from the sums of shape (S,) and the counts, e.g. a confusion matrix."""
        return {}

    parts: ClassVar[str] = ""
    """The list in `details` that has a row for each part (label, output, …) of which `by_part` gives figures."""

    def by_part(self, sums: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return figures of each part, shape (..., parts), from sums of shape (..., S).

        The rows of `parts` get them as NAME, and their intervals as NAME_interval, [low, high] or None.
        """
        return {}

    def part_trials(self, sums: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return, for figures of `by_part` that are proportions, the most trials behind each part, shape (parts,)."""
        return {}


@dataclass(frozen=True)
class Metric:
    """One figure with its interval.

    Args:
        value: the point estimate.
        low, high: ends of the 95 % interval; None where it cannot be computed.
        n: examples it rests on.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Tuned minus base on the same examples.

    Args:
        value: the difference of the two point estimates.
        low, high: ends of the paired 95 % interval.
        p: two-sided bootstrap p-value of no difference.
        better: True where tuned is better beyond chance, False where it is worse, None where neither.
        detectable: the smallest true difference that this many examples would show in four of five tests.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    better: bool | None
    detectable: float | None = None


class Listener(Protocol):
    """Receives what happens during a run; the CLI prints it, a notebook may plot it."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins ("load", "encode", "train", …); `total` is its number of steps where known."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Some steps of the phase are done; `figures` are the latest numbers (loss, learning_rate, …)."""

    def message(self, text: str) -> None:
        """Something worth one line."""


class SilentListener:
    """The listener that does nothing."""

    def phase(self, name: str, total: int | None = None) -> None: ...
    def advance(self, steps: int = 1, **figures: float) -> None: ...
    def message(self, text: str) -> None: ...


def iterate(listener: Listener, items: Iterable[Any], phase: str, total: int | None = None) -> Iterator[Any]:
    """Yield `items` and advance the listener after each."""
    listener.phase(phase, total)
    for item in items:
        yield item
        listener.advance()


__all__ = [
    "Augmenter",
    "Batch",
    "Component",
    "Config",
    "DataError",
    "Difference",
    "EvaluationContext",
    "Evaluator",
    "Example",
    "Features",
    "Judgement",
    "Labels",
    "Listener",
    "LoadRequest",
    "LoadedModel",
    "Metric",
    "ModelLoader",
    "Prediction",
    "Regularizer",
    "SilentListener",
    "Strategy",
    "Task",
    "iterate",
]
