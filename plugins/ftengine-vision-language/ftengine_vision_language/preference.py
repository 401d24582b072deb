"""The task image-preference: which of two answers about pictures is better, by direct preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ftengine.api import (
    Batch,
    Example,
    Features,
    LoadedModel,
    Prediction,
    Prompt,
    Recognised,
    ReferenceTask,
    TaskTraits,
    View,
    usual,
)
from ftengine.errors import DataError, column_names, shown
from ftengine_vision_language.rows import read_dialogue, recognise_pictures
from ftengine_vision_language.task import LANGUAGE_LAYERS, ImageTextToText, PictureConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftengine.model import Criterion

SIDES = ("chosen", "rejected")


class ImagePreferenceConfig(PictureConfig):
    """Options of task image-preference."""

    beta: float = Field(
        0.1,
        gt=0,
        description="how far the model may go from the model before training: the smaller, the further",
        json_schema_extra=usual(0.001, 20),
    )


class ImagePreference(ReferenceTask, ImageTextToText):
    """Prefer one answer about pictures to another: DPO (Rafailov et al. 2023, arXiv:2305.18290).

    A row has `prompt`, `chosen` and `rejected` (texts or lists of messages), and pictures as of task
    image-text-to-text, which both sides see. They are never cut: a pair that is too long is refused.
    """

    name = "image-preference"
    traits = TaskTraits(
        example_model="HuggingFaceTB/SmolVLM-256M-Instruct",
        example_data="preferences.jsonl",
        most_epochs=3,
        learning_rate_share=0.02,
        pipeline_tag="image-text-to-text",
        strategy_defaults=(("targets", LANGUAGE_LAYERS), ("dropout", 0.0)),
    )
    Config = ImagePreferenceConfig
    evaluators = ("preferences",)
    predicts = frozenset({"chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens", "margin"})
    predicts_probabilities = False
    reference = frozenset({"chosen_logp", "rejected_logp"})

    def check_columns(self, columns: Sequence[str]) -> None:
        if missing := [name for name in ("prompt", *SIDES) if name not in columns]:
            raise DataError(
                f"the data has the columns {column_names(columns) or 'none'} and no {' and '.join(missing)}; task "
                "image-preference reads prompt, chosen and rejected, with images or image. Rename columns with "
                "data.columns."
            )

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        """See pairs of answers about pictures."""
        pairs = {"prompt", *SIDES} <= set(columns)
        return recognise_pictures([*columns, "messages"], rows) if pairs else None

    def view(self, row: Example) -> View:
        """Return the pictures as inputs, and both answers as the target."""
        try:
            views = [super(ImagePreference, self).view(_side(row, side)) for side in SIDES]
        except DataError:
            return View((), texts=[], identity=None)
        answers = {side: view.target for side, view in zip(SIDES, views, strict=True)}
        return View(views[0].inputs, answers, texts=views[0].texts, identity=lambda: [x.identity for x in views])

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        changed = super().with_inputs(_side(row, "chosen"), inputs)
        *prompt, _ = changed["messages"]
        sides = {side: _turns(row, side) for side in SIDES}
        return {**changed, "messages": None, "prompt": prompt, **sides}

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return text, input_ids and labels of both sides, and their pictures; `weight` is 1 where they differ."""
        sides = [
            self.encode_conversation(_side(example, side), processor, max_length, last_only=True) for side in SIDES
        ]
        chosen, rejected = (side.inputs for side in sides)
        differ = chosen["input_ids"] != rejected["input_ids"]
        longest = max(side.length for side in sides)
        return Features(
            {**chosen, **{f"rejected_{key}": rejected[key] for key in ("text", "input_ids", "labels")}},
            length=2 * longest,
            weight=int(differ),
            truncated=False,
            longest=longest,
            untrained="" if differ else "both answers are the same as they are written",
            counts={**sides[0].counts, "pairs": 1},
        )

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Return the chosen sides of all pairs, and then the rejected ones: (2 pairs, longest)."""
        return self.stacked(
            [_inputs_of(example.inputs, start) for start in ("", "rejected_") for example in features], processor
        )

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (summed losses of the pairs, their number)."""
        from torch.nn.functional import logsigmoid

        values = self._compared(model, batch)
        return -logsigmoid(values["margin"]).sum(), len(values["margin"])

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return log-probabilities and tokens of both answers, and the margin of the loss."""
        import torch

        with torch.no_grad():
            values = {name: value.tolist() for name, value in self._compared(model, batch).items()}
        return [dict(zip(values, some, strict=True)) for some in zip(*values.values(), strict=True)]

    def _compared(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return (pairs,) values by the keys of `predict`; without a reference in the batch the model is its own."""
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "reference")}
        logps, counts = self._loss.log_probs(model, inputs, batch["labels"])
        (chosen, rejected), (chosen_tokens, rejected_tokens) = logps.chunk(2), counts.chunk(2)
        reference: Mapping[str, Tensor] = batch.get("reference", {})
        before = [reference.get(f"{side}_logp", own.detach()) for side, own in zip(SIDES, logps.chunk(2), strict=True)]
        return {
            "chosen_logp": chosen,
            "rejected_logp": rejected,
            "chosen_tokens": chosen_tokens,
            "rejected_tokens": rejected_tokens,
            "margin": self.config.beta * ((chosen - before[0]) - (rejected - before[1])),
        }

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        return dict(prediction)

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Return the chosen side's text, then the rejected answer."""
        chosen, rejected = (
            super(ImagePreference, self).decode_example(_with(features, start), processor)
            for start in ("", "rejected_")
        )
        return [*chosen, ("\nrejected: ", False), *(piece for piece in rejected if piece[1])]

    def check_input(self, row: Example) -> None:
        super().check_input(_question(row))

    def prompt(self, row: Example, loaded: LoadedModel) -> Prompt:
        """Return what is asked, as task image-text-to-text does."""
        return super().prompt(_question(row), loaded)

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"completion": text} for each row, as task image-text-to-text does."""
        return super().infer(loaded, [*map(_question, rows)], options)

    def generate(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return answers as task image-text-to-text does; the reference is the chosen one."""
        return super().generate(loaded, [*map(_question, rows)], options)


def _side(row: Example, side: str) -> dict[str, Any]:
    """Return one side of a pair as a conversation (DataError: it is no prompt with an answer)."""
    answer = _turns(row, side)
    if len(answer) != 1 or not isinstance(answer[0], Mapping) or answer[0].get("role") != "assistant":
        raise DataError(f"`{side}` is {shown(row.get(side))}; it must be one answer, as text or as a message.")
    rest = {name: value for name, value in row.items() if name not in ("prompt", *SIDES)}
    conversation = {**rest, "messages": [*_turns(row, "prompt"), *answer]}
    if read_dialogue(conversation).turns[-1].pictures:
        raise DataError(f"`{side}` has a picture; answers are texts.")
    return conversation


def _question(row: Example) -> Example:
    """Return a pair as its conversation with the chosen answer; a row that is none as it is."""
    return _side(row, "chosen") if row.get("chosen") is not None else row


def _turns(row: Example, key: str) -> list[Any]:
    """Return a prompt or an answer as messages (DataError: it is neither text nor messages)."""
    value = row.get(key)
    if isinstance(value, str):
        return [{"role": "user" if key == "prompt" else "assistant", "content": value}]
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, Sequence):
        raise DataError(f"`{key}` is {shown(value)}; it must be text or messages.")
    return list(value)


def _inputs_of(inputs: Mapping[str, Any], start: str) -> dict[str, Any]:
    return {"pictures": inputs["pictures"], **{key: inputs[start + key] for key in ("text", "input_ids", "labels")}}


def _with(features: Features, start: str) -> Features:
    from dataclasses import replace

    return replace(features, inputs=_inputs_of(features.inputs, start))
