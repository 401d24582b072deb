"""Tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ftengine.api.component import Component
from ftengine.api.types import Batch, Example, Features, Labels, LoadedModel, Prediction, View

if TYPE_CHECKING:
    import torch
    from torch import nn


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
    """What inputs are: "text" or "image"."""
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

    def view(self, row: Example) -> View:
        """Return what the engine needs to know of a row, before and after the data is bound.

        Never raises: where a row cannot be read, what can be told of it is told. Only taking an input out (decoding an
        image) may raise DataError.
        """
        raise NotImplementedError

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        """Return a row with other inputs, as many as `view` gives of it; the rest stays, and so does `row`.

        Raises:
            DataError: the row cannot be read.
        """
        raise NotImplementedError

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
