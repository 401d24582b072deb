"""The common part of tasks that generate text: the loss of labelled tokens, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ftengine.api import Batch, Config, Features, GenerativeTask, Prediction
from ftengine.generation import GenerationOptions
from ftengine.model import Criterion
from ftengine.model.tokens import IGNORED, stack_tokens

if TYPE_CHECKING:
    from torch import Tensor, nn


UNREADABLE_CALLS = (
    "the model's chat template writes tool calls in a format that cannot be read from answers (a name followed by a "
    "JSON object of arguments can), so none could be right. Remove the evaluator of calls from recipe key 'evaluate', "
    "or use a model whose template has this format."
)


class CausalLMOptions(GenerationOptions):
    """Options of generated answers."""

    continues: bool = Field(False, description="continue a plain text, even if the model has a chat template")
    calls: bool = Field(False, description="measure the last turn that calls tools, where a conversation has one")


class LanguageTask(GenerativeTask):
    """Predicts tokens one after the other; a subclass defines the input and the target."""

    modality = "text"
    evaluators = ("perplexity",)
    predicts = frozenset({"loss", "tokens"})
    generates = frozenset({"completion", "reference", "prompt"})
    short_generation: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 48}
    """Some 35 English words say what kind of answer it is."""
    predicts_probabilities = True
    ahead: ClassVar[int]
    """How far ahead of its own position a state predicts (`TokenLoss`)."""

    def __init__(self, config: Config | None = None) -> None:
        from ftengine.model import TokenLoss

        super().__init__(config)
        self._loss = TokenLoss(self.ahead)

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Pad tokens and labels on the right, (examples, longest)."""
        return stack_tokens([example.inputs for example in features], processor)

    def model_inputs(self, model: nn.Module, batch: Batch) -> Batch:
        """Return the arguments for the model."""
        return batch

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (summed losses of the labelled tokens, their number)."""
        return self._loss.sum(model, self.model_inputs(model, batch), batch["labels"], criterion)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return each example's summed loss and its number of labelled tokens."""
        losses, tokens = self._loss.by_example(model, self.model_inputs(model, batch), batch["labels"])
        return [{"loss": x, "tokens": n} for x, n in zip(losses.tolist(), tokens.tolist(), strict=True)]

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        """Return the mean loss of a token instead of the sum."""
        if not prediction.get("tokens"):
            return dict(prediction)
        return {"loss per token": prediction["loss"] / prediction["tokens"], "tokens": prediction["tokens"]}


def pieces_of(inputs: Mapping[str, Any], processor: Any) -> list[tuple[str, bool]]:
    """Decode with special tokens visible; the first token is never predicted, so never trained on."""
    tokens = zip(inputs["input_ids"], [IGNORED, *inputs["labels"][1:]], strict=True)
    runs = groupby(tokens, key=lambda pair: pair[1] != IGNORED)
    return [(processor.decode([token for token, _ in run]), trained) for trained, run in runs]
