"""Rerankers: a score of a query and a document that the model reads together, learnt from lists of documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ftengine.api import Batch, Config, Example, Features, Labels, LoadedModel, Prediction, Task, TaskTraits, View
from ftengine.errors import DataError
from ftengine.model.tokens import joined, length_limit, stack_tokens, tokenize
from ftengine_builtins.tasks.embedding_rows import id_of
from ftengine_builtins.tasks.labelled import RELEVANT
from ftengine_builtins.tasks.language_rows import read_text
from ftengine_builtins.tasks.modes import evaluated_in_blocks, refuse_options
from ftengine_builtins.tasks.reranking_losses import LOSSES
from ftengine_builtins.tasks.reranking_rows import (
    NEGATIVE,
    POSITIVE,
    QUERY,
    asked_of,
    check_columns,
    document_columns,
    documents_of,
    recognise_reranking,
    replaced,
    sides_of,
)
from ftengine_builtins.tasks.sentence_transformers import IDENTITY, write_activation

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftengine.model import Criterion

DEFAULT_MAX_LENGTH = 512
TOKENS = ("input_ids", "token_type_ids")


class RerankingConfig(Config):
    """Options of task reranking."""

    loss: Literal["contrastive", "ranknet", "listnet", "pointwise"] = Field(
        "contrastive",
        description="each positive against the row's negatives (localized contrastive estimation); pairs of the two "
        "(RankNet); the whole list (ListNet); or each document by itself (binary cross entropy)",
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description=f"longest query with a document, in tokens; null: {DEFAULT_MAX_LENGTH}, or the model's if less",
    )


class Reranking(Task):
    """Score documents for a query, so that those which answer it have higher scores than those which do not.

    Rows have a `query`, a `positive` and a `negative`; either may be a list of texts, and `negative_1`,
    `negative_2`, … are further negatives. A score is the one output of a sequence classifier that has read query
    and document together.
    """

    name = "reranking"
    paper = "Gao et al. 2021, arXiv:2101.08751"
    traits = TaskTraits(example_model="sentence-transformers/all-MiniLM-L6-v2", pipeline_tag="text-ranking")
    head = "sequence-classification"
    modality = "text"
    Config = RerankingConfig
    evaluators = ("reranking",)
    predicts = frozenset({"scores", "label", "document_ids"})

    recognise = staticmethod(recognise_reranking)

    def check_columns(self, columns: Sequence[str]) -> None:
        check_columns(columns)

    def learn_labels(self, splits: Mapping[str, Iterable[Example]]) -> Labels:
        """Return the one output."""
        return Labels("multi", (RELEVANT,))

    def view(self, row: Example) -> View:
        """Return query and documents as inputs; rows with the same ones are duplicates."""
        values = [row.get(name) for name in (QUERY, *document_columns(row))]
        try:
            inputs = [read_text(row, QUERY), *(text for texts in documents_of(row).values() for text in texts)]
        except DataError:
            inputs = []
        return View(inputs, identity=values)

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        return replaced(row, inputs)

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return the tokens of the query with each document, positives first, concatenated.

        `sizes` are their lengths, `relevant` is 1 for a positive; of a pair that is too long, the longer text is cut
        first.
        """
        query, sides = read_text(example, QUERY), sides_of(example)
        texts, counts = [text for side in sides for text in side], [len(side) for side in sides]
        encoded = [tokenize(processor, query, text, limit=self.limit(max_length)) for text in texts]
        inputs = {
            **{
                key: [i for tokens in encoded for i in tokens.inputs[key]] for key in TOKENS if key in encoded[0].inputs
            },
            "sizes": [tokens.length for tokens in encoded],
            "relevant": [1] * counts[0] + [0] * counts[1],
            "document_ids": [id_of(text) for text in texts],
        }
        return joined(encoded, inputs, weight=self._loss().weight(*counts))

    def limit(self, max_length: int | None) -> int:
        """Return the longest input in tokens, given the model's limit."""
        return length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Return tokens (n, k, T) of n queries with up to k documents; missing documents are masked.

        `relevant` is (n, k): 1, 0, or -1 for no document; `document_id` is (n, k).
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [example.inputs for example in features]
        counts = [len(row["sizes"]) for row in rows]
        flat = stack_tokens([tokens for row in rows for tokens in _documents(row)], processor)
        batch = {name: pad_sequence(x.split(counts), batch_first=True) for name, x in flat.items()}
        for name, key, filler in (("relevant", "relevant", -1), ("document_id", "document_ids", 0)):
            batch[name] = pad_sequence([torch.tensor(row[key]) for row in rows], True, filler)
        return batch

    def raw_outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return (documents, 1) scores in at least fp32 for the documents in tokens (n, k, T)."""
        from ftengine.model import raw_outputs, widen

        inputs = {name: batch[name] for name in (*TOKENS, "attention_mask") if name in batch}
        if inputs["attention_mask"].dim() == 3:
            present = inputs["attention_mask"].any(dim=2)
            longest = int(inputs["attention_mask"].sum(dim=2).max())
            inputs = {name: x[present][:, :longest] for name, x in inputs.items()}
        return widen(raw_outputs(model, inputs))

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, Tensor | float]:
        """Return (sum of the configured loss, its weight), of the scores of each row's documents."""
        return self._loss()(self._scores(model, batch), batch["relevant"] == 1, batch["relevant"] == 0)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return for each row the scores of its documents, whether each is relevant, and ids, equal for equal texts."""
        import torch

        with torch.no_grad():
            scores = self._scores(model, batch)
        present = batch["relevant"] >= 0
        columns = {"scores": scores, "label": batch["relevant"], "document_ids": batch["document_id"]}
        return [{name: x[i][present[i]].tolist() for name, x in columns.items()} for i in range(len(scores))]

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        """Return the highest score of a positive and of a negative."""
        scores = list(zip(prediction["scores"], prediction["label"], strict=True))
        return {
            name: round(max(s for s, is_one in scores if is_one == y), 4) for name, y in ((POSITIVE, 1), (NEGATIVE, 0))
        }

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode the first positive and the first negative as the model reads them, with the number of each."""
        documents, relevant = _documents(features.inputs), features.inputs["relevant"]
        pieces = []
        for name, label in ((POSITIVE, 1), (NEGATIVE, 0)):
            first, count = relevant.index(label), relevant.count(label)
            more = f" (1 of {count})" if count > 1 else ""
            pieces += [
                (f"{name}{more}: ", False),
                (processor.decode(documents[first]["input_ids"]), True),
                ("\n", False),
            ]
        return pieces

    def check_input(self, row: Example) -> None:
        """Refuse a row without a query, or without a document."""
        asked_of(row)

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"score": number} for a row's `document`; {"scores": numbers} if that is a list.

        Without `document`, the scores of its positives and negatives, in this order. There are no options.
        """
        refuse_options(self, options)
        if not rows:
            return []
        queries_and_texts = [asked_of(row) for row in rows]
        limit = self.limit(loaded.max_length)
        encoded = [tokenize(loaded.processor, *pair, limit=limit) for pair in pairs_of(queries_and_texts)]
        return answers(queries_and_texts, evaluated_in_blocks(self, loaded, encoded)[:, 0].tolist())

    def write_config(self, loaded: LoadedModel, directory: Path) -> None:
        """Set CrossEncoder to return raw scores, as losses of lists do not train probabilities."""
        write_activation(directory, IDENTITY)

    def _loss(self) -> Any:
        return LOSSES[self.config.loss]()

    def _scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return (n, k) scores, 0 where there is no document."""
        present = batch["relevant"] >= 0
        scores = self.raw_outputs(model, batch)[:, 0]
        return scores.new_zeros(present.shape).masked_scatter(present, scores)


def pairs_of(queries_and_texts: Sequence[tuple[str, str | list[str]]]) -> list[tuple[str, str]]:
    """Return the pairs of query and document to score, from `asked_of` of each row."""
    return [
        (query, text) for query, texts in queries_and_texts for text in ([texts] if isinstance(texts, str) else texts)
    ]


def answers(queries_and_texts: Sequence[tuple[str, str | list[str]]], scores: Iterable[float]) -> list[dict[str, Any]]:
    """Return the predictions for queries with one document or a list of them; `scores` has all scores in order."""
    each = iter(scores)
    return [
        {"score": next(each)} if isinstance(texts, str) else {"scores": [next(each) for _ in texts]}
        for _, texts in queries_and_texts
    ]


def _documents(inputs: Mapping[str, Any]) -> list[dict[str, list[int]]]:
    """Return the tokens of each document of an encoded example."""
    places = [slice(*ends) for ends in pairwise(accumulate(inputs["sizes"], initial=0))]
    return [{key: inputs[key][place] for key in TOKENS if key in inputs} for place in places]
