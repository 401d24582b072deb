"""Embeddings: vectors of texts, near each other where texts belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ftengine.api import Batch, Config, Example, Features, InBatchTask, LoadedModel, Prediction, TaskTraits, View, usual
from ftengine.errors import DataError, InputError, RecipeError, column_names
from ftengine.model.tokens import attention_mask, joined, length_limit, pad, tokenize
from ftengine_builtins.tasks import embedding_losses as losses
from ftengine_builtins.tasks.class_labels import read_name
from ftengine_builtins.tasks.embedding_rows import (
    DOCUMENTS,
    ORIGINAL,
    PARTS,
    check_columns,
    id_of,
    original_ids,
    read_score,
    recognise_embedding,
    require_pairs,
    texts_of,
)
from ftengine_builtins.tasks.language_rows import read_text
from ftengine_builtins.tasks.modes import evaluated
from ftengine_builtins.tasks.sentence_transformers import write_modules

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_MAX_LENGTH = 512
MADE_FOR = "sentence_encoder"
"""Key of a model's config under which its loader says what sentence-transformers does with it."""
SIDES = ("anchor", "positive", "negative")
"""What the texts of a row are, in order, whatever their columns are called."""
TOKENS = ("input_ids", "positive_ids", "negative_ids")
"""What the tokens of each are called among an example's inputs."""
FITTING = {"in-batch": ("pairs", "triplets", "labelled"), "triplet": ("triplets",), "cosine": ("scored",)}
FITTING |= {"cosent": ("scored",), "auto": tuple(PARTS)}
"""Kinds of rows that each loss takes."""
RANKED = frozenset({"query_vector", "document_vector", "query_id", "document_id", "match_id"})
PAIRED = ("pairs", "triplets")
READ_BY: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "temperature": (("in-batch", "cosent"), tuple(PARTS)),
    "symmetric": (("in-batch",), PAIRED),
    "margin": (("triplet",), ("triplets",)),
    "distance": (("triplet",), ("triplets",)),
    "same": (("in-batch",), PAIRED),
    "highest_score": (("cosine", "cosent"), ("scored",)),
    "document_prompt": (("in-batch", "triplet"), PAIRED),
}
"""Losses and kinds of rows that read an option; others refuse it, where it is not its default."""


class EmbeddingConfig(Config):
    """Options of task embedding."""

    rows: Literal["pairs", "triplets", "scored", "labelled"] = Field(
        "pairs",
        description="anchor and positive; these and a negative; sentence1, sentence2 and score; text and label",
    )
    loss: Literal["auto", "in-batch", "triplet", "cosine", "cosent"] = Field(
        "auto",
        description="in-batch negatives, triplet margin, cosine or CoSENT; auto: in-batch, cosent for scored pairs",
    )
    temperature: float = Field(
        0.05, gt=0, description="divides cosines: 1 / sentence-transformers' scale", json_schema_extra=usual(0.005, 1)
    )
    symmetric: bool = Field(False, description="in-batch: find the anchor of each positive as well")
    margin: float = Field(1.0, gt=0, description="for loss triplet", json_schema_extra=usual(0.01, 10))
    distance: Literal["euclidean", "cosine"] = Field("euclidean", description="for loss triplet")
    same: str | None = Field(
        None,
        min_length=1,
        description="in-batch: a column; rows with equal values in it are no negatives of each other",
    )
    highest_score: float = Field(1.0, gt=0, description="highest possible score, which scores are divided by")
    dimensions: list[Annotated[int, Field(ge=1)]] | None = Field(
        None,
        min_length=1,
        description="Matryoshka: add the losses of the first so many numbers of each vector, as [384, 128, 32]",
    )
    dimension_weights: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="weights of `dimensions`; null: 1 each"
    )
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto",
        description="pooling of a text's tokens; auto: the model's 1_Pooling, else mean, for decoders the last token",
    )
    normalize: bool = Field(True, description="whether vectors that are saved and predicted have length 1")
    query_prompt: str | None = Field(
        None, description="text in front of anchors, sentences and labelled texts, as 'query: '; null: the model's own"
    )
    document_prompt: str | None = Field(
        None, description="text in front of positives and negatives; null: the model's own"
    )
    max_length: int | None = Field(
        None, ge=2, description=f"longest text in tokens; null: the model's own, else {DEFAULT_MAX_LENGTH} or its limit"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> EmbeddingConfig:
        if self.rows not in FITTING[self.loss]:
            allowed = [name for name, rows in FITTING.items() if self.rows in rows]
            raise ValueError(f"loss {self.loss} takes no rows of kind {self.rows}; these take {', '.join(allowed)}")
        if self.dimension_weights is not None and len(self.dimension_weights) != len(self.dimensions or ()):
            raise ValueError("dimension_weights has to have as many numbers as dimensions")
        loss = self.loss_of_rows
        for option, (readers, rows) in READ_BY.items():
            value, reads = getattr(self, option), loss in readers and self.rows in rows
            if value not in (type(self).model_fields[option].default, "") and not reads:
                raise ValueError(
                    f"{option} is {value!r}, but loss {loss} of rows of kind {self.rows} does not use it; loss "
                    f"{' or '.join(readers)} of {' or '.join(rows)} does. Leave it out"
                )
        return self

    @property
    def loss_of_rows(self) -> str:
        """The loss; with `auto`, chosen by the kind of rows."""
        return self.loss if self.loss != "auto" else "cosent" if self.rows == "scored" else "in-batch"


class Embedding(InBatchTask):
    """Give texts vectors: those that belong together near each other, for search, clusters and duplicates.

    Rows are pairs (`anchor`, `positive`), triplets (and `negative`), scored pairs (`sentence1`, `sentence2`,
    `score`) or labelled texts (`text`, `label`). Negatives are those of the whole effective batch, whatever
    the size of a micro-batch and the number of processes.
    """

    name = "embedding"
    traits = TaskTraits(
        example_model="sentence-transformers/all-MiniLM-L6-v2",
        answers_vectors=True,
        batch_size=64,
        pipeline_tag="sentence-similarity",
    )
    head = "feature-extraction"
    modality = "text"
    Config = EmbeddingConfig

    recognise = staticmethod(recognise_embedding)

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.in_batch = self.loss_function().meets
        self._made_for: Mapping[str, Any] = {}

    @property
    def predicts(self) -> frozenset[str]:
        if self.config.rows == "scored":
            return frozenset({"similarity", "score"})
        return RANKED | ({"negative_vector"} if self.config.rows == "triplets" else set())

    @property
    def evaluators(self) -> tuple[str, ...]:
        return {"scored": ("similarity",), "triplets": ("retrieval", "triplets")}.get(self.config.rows, ("retrieval",))

    def loss_function(self) -> Any:
        """Return the loss that the options ask for."""
        own = self.config
        of_rows = {
            "in-batch": losses.InBatchNegatives(own.temperature, own.symmetric),
            "triplet": losses.TripletMargin(own.margin, own.distance),
            "cosine": losses.CosineRegression(),
            "cosent": losses.CoSENT(own.temperature),
        }
        loss = losses.SameLabel(own.temperature) if own.rows == "labelled" else of_rows[own.loss_of_rows]
        return losses.Matryoshka(loss, own.dimensions, own.dimension_weights) if own.dimensions else loss

    def check_columns(self, columns: Sequence[str]) -> None:
        check_columns(columns, self.config.rows)
        if self.config.same is not None and self.config.same not in columns:
            raise DataError(
                f"the data has no column {self.config.same!r} (task.same; columns: {column_names(columns)})."
            )

    def set_model(self, loaded: LoadedModel, strategy: Any) -> None:
        """Read the model's intended use; raise RecipeError for dimensions that its vectors do not have."""
        self._made_for = getattr(loaded.module.config, MADE_FOR, {})
        longest, size = max(self.config.dimensions or [0]), vector_size(loaded)
        if longest > size:
            raise RecipeError(
                f"task.dimensions has {longest}, but vectors of {loaded.source!r} have {size} numbers. Remove "
                f"dimensions above {size}."
            )

    def learn_labels(self, splits: Mapping[str, Any]) -> None:
        """Learn nothing; raise DataError if no two labelled texts have the same label."""
        if self.config.rows == "labelled":
            require_pairs(splits["train"])

    def view(self, row: Example) -> View:
        """Return the texts as inputs; rows with the same texts are duplicates. The target is score or label."""
        kind = self.config.rows
        target = row.get({"scored": "score", "labelled": "label"}.get(kind, ""))
        values = [row.get(name) for name in PARTS[kind]]
        try:
            inputs = list(texts_of(row, kind).values())
        except DataError:
            inputs = []
        texts = [value for value in values if isinstance(value, str)]
        return View(inputs, target, kind == "labelled", texts, values)

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        """Return the row with other texts; the original texts still determine which ones are equal."""
        texts = texts_of(row, self.config.rows)
        changed = dict(zip(texts, inputs, strict=True))
        return {**row, **changed, ORIGINAL: original_ids(row, texts.values())}

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return the token ids of each text, cut separately, and the row's other values."""
        texts, own = texts_of(example, self.config.rows), self.config
        encoded = [self._tokens(text, name, processor, max_length) for name, text in texts.items()]
        inputs: dict[str, Any] = {"texts": original_ids(example, texts.values())}
        for key, tokens in zip(TOKENS, encoded, strict=False):
            inputs[key] = tokens.inputs["input_ids"]
        if own.rows == "scored":
            inputs["score"] = read_score(example, own.highest_score, cosine=own.loss == "cosine")
        if own.rows == "labelled":
            inputs["label"] = id_of(read_name(example.get("label")))
        elif own.same is not None:
            inputs["label"] = id_of(example.get(own.same))
        return joined(encoded, inputs, weight=1)

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Pad the tokens of each side separately; ids (n,) are equal for equal texts and labels."""
        import torch

        batch: Batch = {}
        rows = [example.inputs for example in features]
        for number, side in enumerate(SIDES[: len(rows[0]["texts"])]):
            start = f"{side}_" if number else ""
            ids = [row[TOKENS[number]] for row in rows]
            batch[f"{start}input_ids"] = pad(ids, processor.pad_token_id or 0)
            batch[f"{start}attention_mask"] = attention_mask(ids)
            batch[f"{side}_id"] = torch.tensor([row["texts"][number] for row in rows])
        for key, dtype in (("label", torch.int64), ("score", torch.float32)):
            if key in rows[0]:
                batch["label_id" if key == "label" else key] = torch.tensor([row[key] for row in rows], dtype=dtype)
        return batch

    def represent(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return vectors (n, d) of each side as they are pooled, in at least fp32, and ids and scores (n,)."""
        beside = {name: x for name, x in batch.items() if name.endswith("_id") or name == "score"}
        return {**{side: self._vectors(model, batch, side) for side in SIDES if f"{side}_id" in batch}, **beside}

    def joint_loss(self, represented: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | float]:
        import torch

        with torch.autocast(represented["anchor"].device.type, enabled=False):
            return self.loss_function()(represented)

    def raw_outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the (n, d) vectors of anchors."""
        return self._vectors(model, batch, "anchor")

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return query_vector, document_vector and ids of what belongs together; for scored pairs their cosine."""
        import torch

        with torch.no_grad():
            tensors = self.represent(model, batch)
        if self.config.rows == "scored":
            cosine = (losses.unit(tensors["anchor"]) * losses.unit(tensors["positive"])).sum(dim=1)
            columns = {"similarity": cosine, "score": tensors["score"]}
        else:
            document = "anchor" if self.config.rows == "labelled" else "positive"
            columns = {
                "query_vector": self._finished(tensors["anchor"]),
                "document_vector": self._finished(tensors[document]),
                "query_id": tensors["anchor_id"],
                "document_id": tensors[f"{document}_id"],
                "match_id": tensors["label_id" if self.config.rows == "labelled" else "anchor_id"],
            }
            if self.config.rows == "triplets":
                columns["negative_vector"] = self._finished(tensors["negative"])
        lists = {name: x.tolist() for name, x in columns.items()}
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        """Return cosines instead of vectors."""
        if self.config.rows == "scored":
            return dict(prediction)
        query, *others = (prediction[f"{name}_vector"] for name in self._sides())
        return {
            f"cosine of query and {name}": round(sum(a * b for a, b in zip(query, other, strict=True)), 4)
            for name, other in zip(self._sides()[1:], others, strict=True)
        }

    def _sides(self) -> list[str]:
        return ["query", "document", *(["negative"] if self.config.rows == "triplets" else [])]

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode each side as the model reads it; of a scored pair the score is the target."""
        inputs = features.inputs
        texts, scored = [processor.decode(inputs[name]) for name in TOKENS if name in inputs], "score" in inputs
        shown = zip(("sentence1", "sentence2") if scored else SIDES, texts, strict=False)
        pieces = [piece for name, x in shown for piece in ((f"{name}: ", False), (x, not scored), ("\n", False))]
        return [*pieces, ("score: ", False), (f"{inputs['score']:g}", True)] if scored else pieces

    def check_input(self, row: Example) -> None:
        """Refuse a row without a text to compute a vector of."""
        self.side_and_text(row, {})

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"vector": numbers} for one text of each row.

        Options: `column` is the column of that text, by default the first of the task's columns that the row has;
        `prompt` is "query", "document" or "none", by default that of the column.
        """
        settings = dict(options or {})
        if unknown := settings.keys() - {"column", "prompt"}:
            raise InputError(f"unknown option {min(unknown)!r}; task embedding has `column` and `prompt`.")
        if settings.get("prompt", "none") not in ("query", "document", "none"):
            raise InputError(f"option prompt is {settings['prompt']!r}; it is query, document or none.")
        if not rows:
            return []
        sides_and_texts = [self.side_and_text(row, settings) for row in rows]
        ids = [
            self._tokens(text, name, loaded.processor, loaded.max_length).inputs["input_ids"]
            for name, text in sides_and_texts
        ]
        batch = {"input_ids": pad(ids, loaded.processor.pad_token_id or 0), "attention_mask": attention_mask(ids)}
        return [{"vector": vector} for vector in self._finished(evaluated(self, loaded, batch)).tolist()]

    def write_config(self, loaded: LoadedModel, directory: Path) -> None:
        """Write the files that sentence-transformers needs to open the folder."""
        write_modules(
            directory,
            vector_size(loaded),
            self._pooling(loaded.module),
            normalize=self.config.normalize,
            prompts={"query": self.prompt_of("query"), "document": self.prompt_of("document")},
            default="" if self.config.rows in PAIRED else "query",
            max_length=self._limit(loaded.max_length),
        )

    def prompt_of(self, side: str) -> str:
        """Return the prompt in front of texts of a side, "query" or "document"."""
        prompt = self.config.query_prompt if side == "query" else self.config.document_prompt
        # Sentences that are compared, or labelled, are no questions to documents.
        named = side if self.config.rows in PAIRED else "default"
        return prompt if prompt is not None else str(self._made_for.get("prompts", {}).get(named, ""))

    def side_and_text(self, row: Example, options: Mapping[str, Any]) -> tuple[str, str]:
        """Return the side and the text of a row for which a vector is computed (DataError: it has no text)."""
        columns = (*PARTS[self.config.rows], "anchor", "positive", "text", "document", "query")
        column = options.get("column") or next((name for name in columns if row.get(name) is not None), columns[0])
        text = read_text(row, column)
        of_document = column in DOCUMENTS or (column == "text" and self.config.rows != "labelled")
        prompt = options.get("prompt") or ("document" if of_document else "query")
        return {"query": "anchor", "document": "positive", "none": ""}[prompt], text

    def _tokens(self, text: str, column: str, processor: Any, max_length: int | None) -> Features:
        prompt = self.prompt_of("document" if column in DOCUMENTS else "query") if column else ""
        return tokenize(processor, (prompt + text).strip(), limit=self._limit(max_length))

    def _limit(self, max_length: int | None) -> int:
        return length_limit(self.config.max_length, max_length, self._made_for.get("max_length", DEFAULT_MAX_LENGTH))

    def _pooling(self, model: Any) -> str:
        if self.config.pooling != "auto":
            return self.config.pooling
        from ftengine_builtins.loaders.heads import is_decoder

        made_for = getattr(model.config, MADE_FOR, {})
        return made_for.get("pooling") or ("last" if is_decoder(model.config) else "mean")

    def _vectors(self, model: Any, batch: Batch, side: str) -> Tensor:
        """Return (n, d) pooled vectors of one side in at least fp32."""
        from ftengine.model import widen

        start = "" if side == "anchor" else f"{side}_"
        ids, mask = batch[f"{start}input_ids"], batch[f"{start}attention_mask"]
        hidden = widen(model(input_ids=ids, attention_mask=mask).last_hidden_state)
        hidden = hidden[:, -mask.shape[1] :]  # virtual tokens of a strategy stand in front
        pooling = self._pooling(model)
        if pooling == "cls":
            return hidden[:, 0]
        if pooling == "last":
            last = mask.sum(dim=1) - 1  # padded on the right
            return hidden[last.new_tensor(range(len(last))), last]
        weights = mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def _finished(self, vectors: Tensor) -> Tensor:
        return losses.unit(vectors) if self.config.normalize else vectors


def vector_size(loaded: LoadedModel) -> int:
    """Return how many numbers a vector of the model has."""
    return loaded.module.config.get_text_config().hidden_size  # type: ignore[union-attr,operator,return-value]
