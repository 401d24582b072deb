"""The task image-text-to-text: answers to conversations with pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ftengine.api import (
    Batch,
    Config,
    Example,
    Features,
    GenerativeTask,
    LoadedModel,
    Prediction,
    Prompt,
    Strategy,
    TaskTraits,
    View,
)
from ftengine.errors import DataError, InputError, column_names
from ftengine.generation import GenerationOptions
from ftengine_vision_language.encoding import (
    IGNORED,
    encode,
    processed,
    require_pictures_read,
    tokenizer_of,
    written,
)
from ftengine_vision_language.parts import trained_parts, unintended_matches
from ftengine_vision_language.pictures import LazyPictures, data_url, identity_of, kept, open_picture
from ftengine_vision_language.rows import Dialogue, Turn, read_dialogue, recognise_pictures, with_paths

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftengine.model import Criterion

TOGETHER = 8
"""Prompts that are answered in one batch."""
DEFAULT_MAX_LENGTH = 4096
LANGUAGE_LAYERS = r".*(language_model|text_model)\.layers\..*"
"""Paths of the linear layers of the language part, which strategies with `targets` adapt unless the recipe says
otherwise; vision part and projector stay as they are."""


class PictureConfig(Config):
    """Options of tasks on pictures and text."""

    max_length: int | None = Field(
        None,
        ge=2,
        description="longest example in tokens, with those of its pictures; a longer one is refused, never cut; null: "
        f"{DEFAULT_MAX_LENGTH}, or the model's limit if less",
    )
    outside_files: bool = Field(False, description="open pictures outside of the data file's folder too")
    picture_size: int | None = Field(
        None, ge=8, description="scale larger pictures down to this many pixels at their longer side; null: as they are"
    )


class ImageTextToTextConfig(PictureConfig):
    """Options of task image-text-to-text."""

    train_on: Literal["assistant", "last"] = Field(
        "assistant", description="assistant: all of the assistant's turns; last: its last one"
    )


class ImageTextToText(GenerativeTask):
    """Answer conversations with pictures, by the model's own processor and chat template.

    A row has `messages`, or `conversations` (LLaVA), or `prompt` and `completion`; pictures stand in parts of messages,
    or in the column `images` or `image` with `<image>` marks in the text. Pictures are never cut, and no address of the
    network is fetched. Only the assistant's turns train: no token of a picture does.
    """

    name = "image-text-to-text"
    traits = TaskTraits(
        example_model="HuggingFaceTB/SmolVLM-256M-Instruct",
        example_data="pictures.jsonl",
        pipeline_tag="image-text-to-text",
        strategy_defaults=(("targets", LANGUAGE_LAYERS),),
    )
    head = "image-text-to-text"
    modality = "image"
    Config: ClassVar[type[PictureConfig]] = ImageTextToTextConfig
    evaluators: tuple[str, ...] = ("perplexity", "vqa")
    predicts = frozenset({"loss", "tokens"})
    generates = frozenset({"completion", "reference", "prompt", "references"})
    short_generation = {"max_new_tokens": 48}  # noqa: RUF012
    predicts_probabilities = True
    prompts_have_inputs = True
    file_columns = ("images", "image")

    recognise = staticmethod(recognise_pictures)

    def __init__(self, config: Any = None) -> None:
        from ftengine.model import TokenLoss

        super().__init__(config)
        self._loss = TokenLoss()

    def in_folder(self, row: Example, folder: str) -> Example:
        return with_paths(row, folder, inside=not self.config.outside_files)

    def check_columns(self, columns: Sequence[str]) -> None:
        if not ({"messages", "conversations"} & set(columns) or {"prompt", "completion"} <= set(columns)):
            raise DataError(
                f"the data has the columns {column_names(columns) or 'none'}; task image-text-to-text reads messages, "
                "or conversations, or prompt and completion, with images or image. Rename columns with data.columns."
            )

    def view(self, row: Example) -> View:
        """Return the pictures as inputs and the last answer as target; rows of equal pictures and texts are equal."""
        try:
            dialogue = read_dialogue(row)
        except DataError:
            return View((), texts=[], identity=None)
        texts = [turn.text for turn in dialogue.turns]
        answer = next((turn.text for turn in reversed(dialogue.turns) if turn.role == "assistant"), None)
        asked = [turn.text for turn in dialogue.turns if turn.role != "assistant"]
        return View(
            LazyPictures(dialogue.pictures),
            answer,
            # The same question about other pictures is no copy, so texts with pictures are not compared.
            texts=[] if dialogue.pictures else [text for text in texts if text.strip()],
            identity=lambda: [*map(identity_of, dialogue.pictures), *asked],
        )

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        dialogue = read_dialogue(row)
        if len(inputs) != len(dialogue.pictures):
            raise DataError(f"the row has {len(dialogue.pictures)} pictures, and {len(inputs)} were given.")
        if not inputs:
            return row
        others = {
            key: value for key, value in row.items() if key not in ("prompt", "completion", "conversations", "image")
        }
        return {**others, "messages": dialogue.messages(), "images": list(inputs)}

    def set_model(self, loaded: LoadedModel, strategy: Strategy | None) -> None:
        """Check that processor, chat template and model fit together (RecipeError: they do not)."""
        tokenizer_of(loaded.processor)
        require_pictures_read(loaded, self.probe_batch)

    def notes(self, loaded: LoadedModel, strategy: Strategy) -> tuple[list[str], list[str]]:
        """Return how much of each part trains, and which patterns matched the vision part beside others."""
        return trained_parts(loaded.module), [*unintended_matches(loaded.module, strategy.matches())]

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return text, pictures (paths or bytes), input_ids and labels, (length,), unshifted.

        `weight` counts the labels that are predicted.
        """
        return self.encode_conversation(example, processor, max_length, last_only=self.config.train_on == "last")

    def encode_conversation(self, row: Example, processor: Any, max_length: int | None, *, last_only: bool) -> Features:
        """Encode a conversation; `last_only` trains its last answer alone (DataError: it is too long)."""
        dialogue = read_dialogue(row)
        pictures = self._opened(dialogue.pictures)
        encoded = encode(processor, dialogue, pictures, last_only=last_only)
        limits = [limit for limit in (self.config.max_length or DEFAULT_MAX_LENGTH, max_length) if limit]
        if len(encoded.ids) > min(limits):
            words = len(tokenizer_of(processor)(encoded.text, add_special_tokens=False)["input_ids"])
            raise DataError(
                f"the example has {len(encoded.ids):,} tokens, of which some {len(encoded.ids) - words:,} are its "
                f"{len(pictures)} pictures', and {min(limits):,} are allowed. Pictures are never cut: raise "
                "task.max_length, set task.picture_size, or leave such rows out (data.on_error: skip)."
            )
        weight = sum(label != IGNORED for label in encoded.labels[1:])
        values = [kept(value, f"picture {i}") for i, value in enumerate(dialogue.pictures, 1)]
        inputs = {"text": encoded.text, "pictures": values, "input_ids": encoded.ids, "labels": encoded.labels}
        return Features(inputs, len(encoded.ids), weight, truncated=False, counts={"pictures": len(pictures)})

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Return what the processor makes of the batch's texts and pictures, and labels (examples, longest).

        Raises:
            DataError: a picture has changed since it was encoded.
        """
        return self.stacked([example.inputs for example in features], processor)

    def stacked(self, conversations: Sequence[Mapping[str, Any]], processor: Any) -> Batch:
        """Return the batch of some encoded conversations (`collate`)."""
        import torch

        pictures = [self._opened(one["pictures"]) for one in conversations]
        batch = dict(processed(processor, [one["text"] for one in conversations], pictures))
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for i, one in enumerate(conversations):
            own = torch.tensor(one["input_ids"])
            if not torch.equal(batch["input_ids"][i, : len(own)], own):
                raise DataError("a picture has another size than when the row was encoded. Restore its file.")
            labels[i, : len(own)] = torch.tensor(one["labels"])
        return {**batch, "labels": labels}

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (summed losses of the labelled tokens, their number)."""
        return self._loss.sum(model, batch, batch["labels"], criterion)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return each example's summed loss and its number of labelled tokens."""
        losses, tokens = self._loss.by_example(model, batch, batch["labels"])
        return [{"loss": x, "tokens": n} for x, n in zip(losses.tolist(), tokens.tolist(), strict=True)]

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        if not prediction.get("tokens"):
            return dict(prediction)
        return {"loss per token": prediction["loss"] / prediction["tokens"], "tokens": prediction["tokens"]}

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Return the text with special tokens visible; runs of a picture's tokens are counted."""
        tokenizer, ids = tokenizer_of(processor), features.inputs["input_ids"]
        trains = [label != IGNORED for label in [IGNORED, *features.inputs["labels"][1:]]]
        runs = groupby(zip(ids, trains, strict=True), key=lambda pair: pair[1])
        return [("".join(_shown([token for token, _ in run], tokenizer)), trained) for trained, run in runs]

    def probe_batch(self, loaded: LoadedModel) -> Batch:
        """Return two conversations about noise."""
        import numpy as np
        from PIL import Image

        noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        turns = (Turn("user", (None, "What is it?")), Turn("assistant", ("Noise.",)))
        pictures = [[Image.fromarray(one)] for one in noise]
        texts = [written(loaded.processor, Dialogue(turns, tuple(some))) for some in pictures]
        return dict(processed(loaded.processor, texts, pictures))

    def prompt(self, row: Example, loaded: LoadedModel) -> Prompt:
        """Return what is asked, with its pictures as the model reads them, and as data URLs in its messages."""
        asked = _asked(row)
        pictures = self._opened(asked.pictures)
        inputs = dict(processed(loaded.processor, [written(loaded.processor, asked, asks=True)], [pictures]))
        ids = inputs.pop("input_ids")[0].tolist()
        inputs.pop("attention_mask")
        return Prompt(ids, asked.sent(map(data_url, pictures)), inputs=inputs)

    def check_input(self, row: Example) -> None:
        self._opened(_asked(row).pictures)

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"completion": text} for each row, the answer to its last question."""
        return [{"completion": text} for text, _ in self._answers(loaded, rows, GenerationOptions.read(options))]

    def generate(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return "prompt", "completion" and "reference" of each row; "references" is a JSON list of all right answers.

        These are the row's `answers`, where it has such a list, else its own answer alone.
        """
        found = []
        for row, (text, asked) in zip(rows, self._answers(loaded, rows, GenerationOptions.read(options)), strict=True):
            dialogue, several = read_dialogue(row), row.get("answers")
            last = dialogue.turns[-1]
            reference = last.text if last.role == "assistant" else None
            right = [*map(_answer_text, several)] if isinstance(several, (list, tuple)) else [reference]
            found.append(
                {
                    "prompt": " ".join([*map(_name, asked.pictures), asked.turns[-1].text]),
                    "completion": text,
                    "reference": reference,
                    "references": json.dumps([answer for answer in right if answer is not None]),
                }
            )
        return found

    def _answers(
        self, loaded: LoadedModel, rows: Sequence[Example], options: GenerationOptions
    ) -> Iterator[tuple[str, Dialogue]]:
        """Yield an answer to each row, and what was asked."""
        import torch

        from ftengine.model import evaluating, quiet_transformers

        if options.temperature:
            raise InputError("option 'temperature': answers about pictures are the likeliest tokens; 0 is allowed.")
        module: Any = loaded.module
        tokenizer, parameter = tokenizer_of(loaded.processor), next(module.parameters())
        for start in range(0, len(rows), TOGETHER):
            asked = [_asked(row) for row in rows[start : start + TOGETHER]]
            texts = [written(loaded.processor, one, asks=True) for one in asked]
            inputs = processed(loaded.processor, texts, [self._opened(one.pictures) for one in asked], "left")
            inputs = {
                key: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
                for key, value in inputs.items()
            }
            with ExitStack() as stack:
                for held in (torch.no_grad(), evaluating(module), quiet_transformers()):
                    stack.enter_context(held)
                output = module.generate(
                    **inputs,
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=options.max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                )
            new = output[:, inputs["input_ids"].shape[1] :].tolist()
            yield from zip((tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in new), asked, strict=True)

    def _opened(self, values: Sequence[Any]) -> list[Any]:
        pictures = [open_picture(value, f"picture {number}") for number, value in enumerate(values, 1)]
        if (most := self.config.picture_size) is not None:
            for picture in pictures:
                picture.thumbnail((most, most))
        return pictures


def _asked(row: Example) -> Dialogue:
    """Return a row without the answer at its end (DataError: nothing is asked)."""
    dialogue = read_dialogue(row)
    turns = dialogue.turns[:-1] if dialogue.turns[-1].role == "assistant" else dialogue.turns
    if not turns or turns[-1].role != "user":
        raise DataError("the conversation asks nothing: its last message but the answer is not the user's.")
    return Dialogue(turns, dialogue.pictures_of(len(turns)))


def _answer_text(answer: Any) -> str:
    """Return the text of one of a row's `answers`: itself, or the `answer` of VQA v2's {answer, answer_confidence}."""
    return str(answer["answer"] if isinstance(answer, Mapping) and "answer" in answer else answer)


def _name(value: Any) -> str:
    """Return a picture in brackets: its path, or the beginning of its file's hash."""
    path = value.get("path") if isinstance(value, Mapping) else value
    named = isinstance(path, str) and not path.startswith("data:")
    return f"[{path}]" if named else f"[picture {identity_of(value)[:6]}]"


def _shown(ids: Sequence[int], tokenizer: Any) -> Iterator[str]:
    """Yield pieces of text; a token that repeats more than three times stands once, with its count."""
    piece = list[int]()
    for token, run in groupby(ids):
        count = len(list(run))
        if count > 3:
            yield tokenizer.decode(piece) + f"{tokenizer.decode([token])}×{count}"
            piece = []
        else:
            piece += [token] * count
    yield tokenizer.decode(piece)
