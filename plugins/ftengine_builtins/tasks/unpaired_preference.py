"""Unpaired preferences: single answers that are desirable or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ftengine.api import Batch, Config, Example, Features, InBatchTask, Labels, Prediction, Recognised, View, usual
from ftengine.errors import DataError, column_names
from ftengine.model.tokens import length_limit, stack_tokens
from ftengine_builtins.layouts import recognised
from ftengine_builtins.tasks import language_rows
from ftengine_builtins.tasks.causal_lm import DEFAULT_MAX_LENGTH
from ftengine_builtins.tasks.chat_counts import with_layout
from ftengine_builtins.tasks.compared_answers import (
    DIVERGENCE,
    AnswerOptions,
    ComparesAnswers,
    cut_to,
    require_each,
    trains,
)
from ftengine_builtins.tasks.preference import CUT_OFF
from ftengine_builtins.tasks.recognising import is_relevance
from ftengine_builtins.tasks.unpaired_losses import UNPAIRED_LOSSES, Answers, UnpairedLoss, require_falling
from ftengine_builtins.unpaired_layouts import are_unpaired, tag_of, unpaired

if TYPE_CHECKING:
    from torch import Tensor, nn


RELEVANCE = (
    "label is read as whether the response is a desirable answer. Where it says whether the response is relevant to "
    "the query, take --task text-classification, with the options pair: response and kind: relevance."
)
"""What is said of columns that a ranking of responses has too."""
MISMATCHED = "mismatched_"
"""In front of the keys of what the prompt is with another prompt's answer."""


class UnpairedLossOptions(Config):
    """The loss of single answers and its options."""

    loss: str | None = Field(None, description="kto; null: that")
    beta: float | None = Field(
        None,
        gt=0,
        description="how far the model may go from the reference: the smaller, the further; null: 0.1",
        json_schema_extra=usual(0.001, 20),
    )
    nll: float | None = Field(
        None, ge=0, description="weight of the desirable answers' own loss per token, which is added; null: 0"
    )
    desirable_weight: float | None = Field(
        None, ge=0, description="kto: λ_D, of desirable answers; null: 1", json_schema_extra=usual(0.05, 20)
    )
    undesirable_weight: float | None = Field(
        None, ge=0, description="kto: λ_U, of the others; null: 1", json_schema_extra=usual(0.05, 20)
    )


class UnpairedPreferenceConfig(AnswerOptions, UnpairedLossOptions):
    """Options of task unpaired-preference."""


class UnpairedPreference(InBatchTask, ComparesAnswers):
    """Make desirable answers likelier and others less likely: KTO, on prompt, completion and label.

    A row has `prompt` and `completion` (texts, or lists of messages), or a conversation that ends with the answer, in
    any layout that task causal-lm reads, and `label` (or `kto_tag`), true if the answer is desirable. It is written as
    there, and cut like a pair of task preference. For the loss's baseline, a prompt is paired with the answer of the
    next row of the split with another prompt; the same one in every epoch.
    """

    name = "unpaired-preference"
    traits = replace(ComparesAnswers.traits, reads_following=True)
    Config = UnpairedPreferenceConfig
    evaluators = ("unpaired-preferences",)
    losses: ClassVar[tuple[type[UnpairedLoss], ...]] = UNPAIRED_LOSSES
    require_falling = staticmethod(require_falling)
    compared = frozenset({"logp", "mismatched_logp"})
    predicts = frozenset({"logp", "mismatched_logp", "tokens", "desirable", "reward"})

    def check_columns(self, columns: Sequence[str]) -> None:
        if tag_of(columns) is None:
            raise DataError(
                f"the data has columns {column_names(columns) or '(none)'}; unpaired preferences need `prompt`, "
                "`completion` and `label` (true or false). Rename columns with data.columns, e.g. {label: COLUMN}."
            )

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        """Recognise answers with a label true or false."""
        if not are_unpaired(columns, rows):
            return None
        relevance = {"query", "response", "label"} <= set(columns) and is_relevance("label", rows)
        names = dict.fromkeys(name for row in rows if (name := recognised(row)[0]))
        return Recognised(3, layout=" and ".join(names), note=RELEVANCE if relevance else "")

    def learn_labels(self, splits: Mapping[str, Iterable[Example]]) -> Labels | None:
        """Raise DataError if all answers are desirable, all are undesirable, or all belong to one prompt."""
        counts, prompts = Counter[bool](), set[str]()
        for row in splits["train"]:
            view = self.view(row)
            if not view.inputs:  # it will be refused by its line
                return None
            counts[view.target["desirable"]] += 1
            prompts |= {str(view.inputs)} if len(prompts) < 2 else set()
        if len(counts) == 1:
            (label,) = counts
            raise DataError(
                f"all {counts.total():,} answers of the training data have label {str(label).lower()}; a loss of "
                "unpaired preferences learns from desirable answers (true) and from others (false)."
            )
        if len(prompts) == 1:
            raise DataError(
                "all rows of the training data have the same prompt; each answer's gain is compared with that of "
                "answers to other prompts, so there must be two at least."
            )
        return None

    def view(self, row: Example) -> View:
        """Return the prompt as input, the answer with its label as the target."""
        try:
            read = unpaired(row)
            view = language_rows.view(read, all_trained=False)
        except DataError:
            return language_rows.unreadable(row)
        target = {"completion": view.target, "desirable": read["label"]}
        return View(view.inputs, target, texts=view.texts, identity=[view.identity, read["label"]])

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        return language_rows.with_inputs(unpaired(row), inputs)

    def encode(
        self, example: Example, processor: Any, *, max_length: int | None = None, following: Example | None = None
    ) -> Features:
        """Return input_ids and labels of the answer, and of its prompt with the answer of the row `following`.

        Without such a row, or if it cannot be read, the row's own answer is used.
        """
        limit = length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)
        row = unpaired(example)
        if (parts := self._language.parts(row, processor)) > 1:
            raise DataError(
                f"`completion` has turns that the chat template writes differently when others follow, so that they "
                f"make {parts} sequences, and what counts is how likely one is. Move earlier turns into `prompt`, or "
                "leave such rows out with data.on_error=skip."
            )
        encoded = self._language.encode(row, processor)
        own, full, cut = self._cut(limit, encoded, processor)
        try:
            other = unpaired(following or example)["completion"]
            if isinstance(row["completion"], str) != isinstance(other, str):
                other = _as_kind(other, row["completion"])
            mismatched, *_ = self._cut(limit, self._language.encode({**row, "completion": other}, processor), processor)
        except DataError:  # which is told of that row
            mismatched = own
        counts = with_layout(encoded.counts, recognised(example)[0])
        if cut:
            counts.pop("end_of_turn", None)
        kind = "desirable" if row["label"] else "undesirable"
        longest = max(len(own["input_ids"]), len(mismatched["input_ids"]))
        sequences = {**own, **{f"{MISMATCHED}{key}": ids for key, ids in mismatched.items()}}
        return Features(
            {**sequences, "desirable": row["label"]},
            length=2 * longest,
            weight=int(trains(own)),
            truncated=full > limit,
            longest=longest,
            full_length=full,
            unknown=encoded.unknown,
            untrained="" if trains(own) else CUT_OFF,
            counts={**counts, kind: 1},
            kind=kind,
        )

    def _cut(self, limit: int, features: Features, processor: Any) -> tuple[dict[str, list[int]], int, bool]:
        if not trains(features.inputs):
            raise DataError("the answer has no token that is trained on: its messages have weight 0.")
        (own,), full, cut = cut_to(limit, [features], processor)
        return own, full, cut

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:  # type: ignore[override]
        """Stack prompts with their own answers, and then with the mismatched ones: (2n, T); desirable is (n,)."""
        import torch

        sides = [
            {key: example.inputs[f"{start}{key}"] for key in ("input_ids", "labels")}
            for start in ("", MISMATCHED)
            for example in features
        ]
        return {
            **stack_tokens(sides, processor),
            "desirable": torch.tensor([example.inputs["desirable"] for example in features]),
        }

    def represent(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the fields of `Answers`, (n,) each; without a reference the model is its own."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logps, counts = self._loss.log_probs(model, inputs, batch["labels"])
        logp, mismatched = logps.chunk(2)
        reference_values = batch.get("reference", {})
        return {
            "logp": logp,
            "tokens": counts.chunk(2)[0],
            "desirable": batch["desirable"],
            "mismatched_logp": mismatched.detach(),
            "reference_logp": reference_values.get("logp", logp.detach()),
            "reference_mismatched_logp": reference_values.get("mismatched_logp", mismatched.detach()),
        }

    def joint_loss(self, represented: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Return (summed losses of the answers of a group, their number)."""
        answers = Answers(**represented)
        losses = require_each(self.preference_loss, self.sound_loss(answers), len(answers.logp))
        return losses.sum(), len(losses)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return log-probabilities, tokens, the implied reward, and whether the answer is desirable."""
        import torch

        with torch.no_grad():
            represented = self.represent(model, batch)
        reward = self.preference_loss.reward(represented["logp"], represented["reference_logp"])
        columns = {name: represented[name].tolist() for name in ("logp", "mismatched_logp", "tokens", "desirable")}
        columns["reward"] = reward.tolist()
        columns[DIVERGENCE] = (
            (represented["logp"] - represented["reference_logp"]).abs() / represented["tokens"]
        ).tolist()
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode the prompt with its answer."""
        return self._language.decode_example(features, processor)

    def question(self, row: Example) -> Example:
        """Return a row as a prompt, without its answer."""
        if tag_of([name for name, value in row.items() if value is not None]) is None:
            return row
        return {name: value for name, value in unpaired(row).items() if name != "completion"}

    def answered(self, row: Example) -> Example:
        """Return the prompt with its answer."""
        return unpaired(row)


def _as_kind(answer: Any, sample: Any) -> Any:
    """Return an answer as text or as messages, as another is."""
    if isinstance(sample, str):
        return "\n".join(str(message.get("content") or "") for message in answer)
    return [{"role": "assistant", "content": answer}]
