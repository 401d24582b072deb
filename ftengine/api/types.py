"""Small objects that the engine and plugins exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ftengine.api.fast_path import InferencePath


if TYPE_CHECKING:
    Example = Mapping[str, Any]
    Batch = dict[str, Any]
    Prediction = dict[str, Any]
else:  # classes, so that `help` tells what they are; any mapping, or dict, is one

    class Example(Mapping[str, Any]):
        """One row of the user's data, by column name: a mapping."""

    class Batch(dict[str, Any]):
        """A collated batch: a dict of tensors by name, leading dimension = number of examples.

        "reference" holds a dict of the reference's predictions, where the loss needs them (`ReferenceTask`).
        """

    class Prediction(dict[str, Any]):
        """A task's prediction for one example: a dict of plain Python values, which evaluators read by key."""


@dataclass(slots=True)
class Features:
    """One encoded example, ready for `Task.collate`.

    Args:
        inputs: by name, what `collate` batches: numbers, texts, lists or tensors of numbers.
        length: its tokens.
        weight: its part of the loss's denominator, e.g. label tokens; 0: nothing is trained on.
        truncated: whether something was cut off.
        longest: the longest sequence that the model reads of it, for its limit; None: it reads one, of `length`.
        full_length: the length before cutting, whose distribution `plan` shows; None: unknown.
        unknown: number of unknown tokens (such as [UNK]) in the input; None if not counted.
        untrained: why nothing is trained on, if not because of cutting.
        counts: numbers by name, which audits see summed over a split.
        kind: kind of row; `plan` shows one of each; "": all rows are of one kind.
    """

    inputs: dict[str, Any]
    length: int
    weight: float
    truncated: bool
    longest: int | None = None
    full_length: int | None = None
    unknown: int | None = None
    untrained: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    kind: str = ""


SAMPLES = "samples"
"""The key of the answers to a row that is answered several times."""


@dataclass(frozen=True)
class Labels:
    """What a classification head predicts.

    Args:
        kind: "single" (one of `names`), "multi" (any subset of `names`), "regression" (a number), or "tags" (one of
            `names` per word; "single" tags may be IOB2).
        names: label names in id order; for regression one name an output.
        counts: number of training rows of each name, if the task counted them; `==` ignores it.
        mean, std: mean and standard deviation of the training targets, which standardise the loss; else None.
    """

    kind: str
    names: tuple[str, ...]
    counts: tuple[int, ...] | None = field(default=None, compare=False, repr=False)
    mean: float | None = field(default=None, compare=False, repr=False)
    std: float | None = field(default=None, compare=False, repr=False)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each name."""
        return {name: i for i, name in enumerate(self.names)}


@dataclass(frozen=True)
class LoadRequest:
    """What a task and a recipe ask of a model loader.

    Args:
        source: the recipe's `model.source`, untouched.
        head: head that the task needs: "causal-lm", "seq2seq-lm", "sequence-classification", ….
        labels: the classification targets, or None where the task has none.
        dtype: "auto" or a torch dtype's name; "auto" keeps the checkpoint's.
        processor: whether the processor is needed as well.
    """

    source: str
    head: str
    labels: Labels | None = None
    dtype: str = "auto"
    processor: bool = True


@dataclass(frozen=True)
class Prompt:
    """A prompt for a language model, as the task writes it.

    Args:
        ids: its tokens, as the model reads them.
        messages: the conversation, each {"role", "content"}; None where it is plain text.
        text: the plain text; "" of a conversation.
        inputs: what the model reads beside its tokens, such as `pixel_values`: tensors by argument.
    """

    ids: Sequence[int]
    messages: Sequence[Mapping[str, Any]] | None = None
    text: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class LoadedModel:
    """A model as the strategy receives it.

    Args:
        module: the torch module; every parameter arrives with requires_grad as the loader left it.
        processor: tokenizer, image processor or feature extractor that goes with it.
        source: where it came from.
        head: the requested head.
        new_modules: names of newly initialised modules (a classifier head); they train and are saved in any case.
        labels: the classification targets, or None.
        fingerprint: hashes and settings that identify base and processor, by section; filled in by the engine. A loader
            that changes weights while reading gives that of the unchanged base (`fingerprint_base`); any loader may add
            settings to "config" that the module does not show.
        max_length: longest input in tokens that the model accepts, or None where it has no limit.
        pretrained: names that the base's parameters have after the strategy prepared it; the engine fills it in.
        inference_paths: fast paths for prediction and generation; filled in by the engine.
    """

    module: nn.Module
    processor: Any
    source: str
    head: str
    new_modules: tuple[str, ...] = ()
    labels: Labels | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    pretrained: frozenset[str] = frozenset()
    inference_paths: tuple[InferencePath, ...] = ()


class View:
    """A row as the engine sees it, independent of its columns' names.

    Args:
        inputs: the row's inputs, which augmenters may change (`Task.with_inputs` replaces them): texts, none of them
            blank, or PIL images or audio, decoded on access; the latter are compared by == and described by `str`.
            Empty if the row cannot be read.
        target: the row's answer or label, a JSON value compared by ==; None if there is none, or if it cannot be read.
        classes: whether equal inputs should have equal targets, so that balance, contradictions and stratified splits
            go by the target; False for free text.
        texts: all text of the row, for audits; by default the inputs. Required if inputs are images.
        identity: a JSON value that is equal for duplicate rows; by default the inputs. Required like `texts`. It may be
            a function that returns the value, as hashing files is slow.
    """

    def __init__(
        self,
        inputs: Sequence[Any],
        target: Any = None,
        classes: bool = False,
        texts: Sequence[str] | None = None,
        identity: Any | Callable[[], Any] = None,
    ) -> None:
        self.inputs, self.target, self.classes = inputs, target, classes
        self.texts = inputs if texts is None else texts
        self._identity = identity

    @cached_property
    def identity(self) -> Any:
        """What makes two rows duplicates."""
        identity = self._identity() if callable(self._identity) else self._identity
        return list(self.inputs) if identity is None else identity

    @property
    def label(self) -> Any:
        """The target if it is a class, a set of classes or a number; None for free text."""
        return self.target if self.classes else None

    @property
    def labels(self) -> list[str]:
        """The class names in `label`: several where it is a list; none for numbers with a fraction."""
        labels = self.label if isinstance(self.label, (list, tuple)) else [self.label]
        return [str(label) for label in labels if label is not None and not isinstance(label, (float, Mapping))]
