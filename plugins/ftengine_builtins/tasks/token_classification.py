"""Tagging the words of a text: names of people and places, parts of speech."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ftengine.api import Batch, Config, Example, Features, Labels, LoadedModel, Prediction, Task, TaskTraits, View
from ftengine.errors import DataError
from ftengine.model import Criterion
from ftengine.model.tokens import IGNORED, encode_words, length_limit, stack_tokens
from ftengine_builtins.tasks import tagged_rows
from ftengine_builtins.tasks.class_labels import in_order, one_spelling, refuse_new_labels, unknown_label
from ftengine_builtins.tasks.iob2 import OUTSIDE, completed, entities, foreign_tag, has_entities, is_iob2
from ftengine_builtins.tasks.modes import evaluated, refuse_options
from ftengine_builtins.tasks.tagged_rows import Tagged, read_tagged, read_words

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_MAX_LENGTH = 512


class TokenClassificationConfig(Config):
    """Options of task token-classification."""

    names: list[str] | None = Field(
        None, min_length=1, description="names of tags that the data gives as numbers, 0 first"
    )
    scheme: Literal["auto", "plain"] = Field(
        "auto", description="auto takes tags O, B-NAME and I-NAME as IOB2; plain takes every tag as it is"
    )
    max_length: int | None = Field(
        None, ge=3, description=f"longest text in tokens; null: {DEFAULT_MAX_LENGTH}, or the model's limit if less"
    )


class TokenClassification(Task):
    """Give each word of a text a tag: named entities in the IOB2 scheme, or tags such as parts of speech.

    A row has `tokens` and `tags`, two lists of equal length, or `text` and `spans`, a list of {start, end, label}
    in characters, which are widened to whole words. Of a word in several pieces the first carries the tag.
    """

    name = "token-classification"
    traits = TaskTraits(example_model="distilbert/distilbert-base-cased", pipeline_tag="token-classification")
    head = "token-classification"
    modality = "text"
    Config = TokenClassificationConfig
    evaluators = ("entities",)
    predicts = frozenset({"tags", "predicted_tags"})
    predicts_probabilities = True

    recognise = staticmethod(tagged_rows.recognise)
    check_columns = staticmethod(tagged_rows.check_columns)
    with_inputs = staticmethod(tagged_rows.with_words)
    check_input = staticmethod(read_words)

    def learn_labels(self, splits: Mapping[str, Iterable[Example]]) -> Labels:
        """Return the tags of training; `encode` refuses rows that cannot be read.

        Fewer than two tags, tags of another scheme, and one that training lacks, are refused (DataError).
        """
        counts = Counter(tag for example in splits["train"] for tag in self._tags_of(example))
        tags = one_spelling(counts)
        if self.config.scheme == "auto":
            if (other := foreign_tag(tags)) is not None:
                raise DataError(
                    f"tag {other!r} is not of the IOB2 scheme (O, B-NAME, I-NAME), though others look like it. Convert "
                    "the tags, or take them as they are with task.scheme: plain."
                )
            tags = completed(_entity_tags(counts)) if is_iob2(tags) else tags
        if len(tags) < 2:
            only = f"only the tag {tags.pop()!r}" if tags else "no tags"
            raise DataError(f"the training data has {only}; at least two are needed.")
        names = (*({OUTSIDE} & tags), *in_order(tags - {OUTSIDE}))
        refuse_new_labels(splits, self._tags_of, names)
        return Labels("tags" if self.config.scheme == "plain" else "single", names)

    def view(self, row: Example) -> View:
        """Return the words as inputs and their tags as target; rows with the same words are duplicates.

        So contradicting tags stay in one split.
        """
        target = list(self._tags_of(row)) or None
        try:
            read = read_words(row)
        except DataError:
            return View((), target, True, (), [row.get("tokens"), row.get("text")])
        words = [read.text[start:stop] for start, stop in read.words]
        return View(words, target, True, [read.text], words)

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return the tokenizer's fields and labels, (length,): a tag's id at each word's first token, else -100.

        `weight` counts the tagged words.
        """
        row = read_tagged(example, self.config.names)
        features, first = self._encode(row, processor, max_length)
        labels = [IGNORED] * features.length
        for position, tag in zip(first, row.tags, strict=True):
            if tag not in self.labels.ids:
                raise unknown_label(tag, self.labels.names)
            if position is not None:
                labels[position] = self.labels.ids[tag]
        features.inputs["labels"], features.weight = labels, sum(label != IGNORED for label in labels)
        return features

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Pad tokens and labels on the right, (examples, longest)."""
        return stack_tokens([example.inputs for example in features], processor)

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (summed losses of the tagged words, their number)."""
        labelled = batch["labels"] != IGNORED
        logits = [self.raw_outputs(model, batch)[labelled] for _ in range(criterion.passes)]
        return criterion.single(batch["labels"][labelled], *logits).sum(), len(logits[0])

    def raw_outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return (examples, longest, tags) logits in at least fp32."""
        from ftengine.model import raw_outputs, widen

        return widen(raw_outputs(model, batch))

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return the true and the predicted tags of each example, as ids in the words' order."""
        import torch

        with torch.no_grad():
            predicted = self.raw_outputs(model, batch).argmax(dim=2)
        labelled = batch["labels"] != IGNORED
        return [
            {"tags": truth[mask].tolist(), "predicted_tags": answer[mask].tolist()}
            for truth, answer, mask in zip(batch["labels"], predicted, labelled, strict=True)
        ]

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        return {key: [self.labels.names[i] for i in prediction[key]] for key in ("tags", "predicted_tags")}

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"tags": [name]} for rows of `tokens`, {"spans": [{start, end, label, text}]} for those of `text`.

        A word beyond the longest text, or without any token, has the tag None. No options.
        """
        refuse_options(self, options)
        if not rows:
            return []
        read = [read_words(row) for row in rows]
        encoded = [self._encode(row, loaded.processor, loaded.max_length) for row in read]
        logits = evaluated(self, loaded, stack_tokens([features.inputs for features, _ in encoded], loaded.processor))
        answers = []
        for row, (_, first), ids in zip(read, encoded, logits.argmax(dim=2).tolist(), strict=True):
            tags = [None if position is None else self.labels.names[ids[position]] for position in first]
            answers.append({"spans": self._spans(row, tags)} if row.is_text else {"tags": tags})
        return answers

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Return the tokens as the model reads them, each tagged token followed by its tag."""
        pieces = []
        for token, label in zip(features.inputs["input_ids"], features.inputs["labels"], strict=True):
            pieces.append((processor.convert_ids_to_tokens(token) + " ", False))
            if label != IGNORED:
                pieces += [(self.labels.names[label], True), (" ", False)]
        return pieces

    def _tags_of(self, example: Example) -> Iterator[str]:
        """Yield a row's tags; none where it cannot be read."""
        try:
            yield from read_tagged(example, self.config.names).tags
        except DataError:
            return

    def _encode(self, row: Tagged, processor: Any, max_length: int | None) -> tuple[Features, list[int | None]]:
        limit = length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)
        return encode_words(processor, row.text, row.words, limit)

    def _spans(self, row: Tagged, tags: Sequence[str | None]) -> list[dict[str, Any]]:
        """Return tags as spans of the text: entities if the scheme has them, else every word with its tag."""
        if has_entities(self.labels):
            in_words = entities([OUTSIDE if tag is None else tag for tag in tags])
        else:
            in_words = [(tag, i, i + 1) for i, tag in enumerate(tags) if tag is not None]
        spans = [(row.words[start][0], row.words[stop - 1][1], kind) for kind, start, stop in in_words]
        return [{"start": a, "end": b, "label": kind, "text": row.text[a:b]} for a, b, kind in spans]


def _entity_tags(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield a tag for each name of an entity; similar names are replaced by the most frequent."""
    names = Counter[str]()
    for tag, count in counts.items():
        names.update({tag[2:]: count} if tag != OUTSIDE else {})
    yield from (f"B-{name}" for name in one_spelling(names))
