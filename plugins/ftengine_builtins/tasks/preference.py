"""Preference tuning: making one of two answers to a prompt likelier than the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ftengine.api import Batch, Config, Example, Features, Prediction, Recognised, View, usual
from ftengine.chat import has_template
from ftengine.errors import DataError, column_names
from ftengine.model import IGNORED
from ftengine.model.tokens import length_limit, stack_tokens, unknown_of_all
from ftengine_builtins.preference_layouts import ANSWER, SIDES, columns_of, dialogue, layout_of, pair_of, preference
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
from ftengine_builtins.tasks.generative import pieces_of
from ftengine_builtins.tasks.preference_losses import LOSSES, Pairs, PreferenceLoss, require_falling
from ftengine_builtins.tasks.recognising import first_of, renamed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftengine.model import Criterion

REJECTED = "rejected_"
"""In front of the keys of the rejected side's features."""
EQUAL = "both answers are the same as they are written"
EQUAL_AS_CUT = "both answers are the same up to task.max_length"
CUT_OFF = "what is trained on of an answer lies behind task.max_length"

OTHER_NAMES = {
    "prompt": ("prompt", "question", "query", "instruction", "input", "frage"),
    "chosen": ("better", "preferred", "winner", "best", "accepted", "besser", "bessere"),
    "rejected": ("worse", "dispreferred", "loser", "worst", "schlechter", "schlechtere"),
}
"""What columns of preferences are called elsewhere; `ftengine init` writes how they are renamed."""


class PairLossOptions(Config):
    """The loss of pairs and its options."""

    loss: str | None = Field(
        None, description="dpo, robust, cdpo, ipo, sigmoid-norm, simpo, orpo or cpo; null: the first of them"
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="how far the model may go from the reference: the smaller, the further; without one, the "
        "steepness, of orpo the weight of its term; null: the loss's own",
        json_schema_extra=usual(0.001, 20),
    )
    nll: float | None = Field(
        None,
        ge=0,
        description="weight of the chosen answer's own loss per token, which is added; null: 0, of orpo and cpo 1",
        json_schema_extra=usual(0, 10),
    )
    label_smoothing: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="robust, cdpo: share of the pairs that are taken to be the wrong way round; null: 0.1",
    )
    target_margin: float | None = Field(None, ge=0, description="simpo: γ; null: 0.5")


class PreferenceConfig(AnswerOptions, PairLossOptions):
    """Options of task preference."""


class Preference(ComparesAnswers):
    """Prefer one answer to another: DPO, IPO, SimPO, ORPO and the like, on prompt, chosen and rejected answer.

    A row has `prompt`, `chosen` and `rejected` (texts, or lists of messages), or `chosen` and `rejected` with a common
    beginning, or is a preference in the layout of OpenAI, ms-swift, Axolotl or LlamaFactory. Both sides are written as
    task causal-lm writes a prompt with its completion, and go through the model together. Only the tokens of the
    answers count. A pair that is too long loses the beginning of its prompt, on both sides equally, before its answers
    are cut. Losses with a reference use the model as training begins.
    """

    name = "preference"
    Config = PreferenceConfig
    evaluators = ("preferences",)
    losses: ClassVar[tuple[type[PreferenceLoss], ...]] = LOSSES
    compared = frozenset({"chosen_logp", "rejected_logp"})
    require_falling = staticmethod(require_falling)
    predicts = frozenset({"chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens", "margin"})

    def _elsewhere(self, name: str) -> str:
        single = " Loss kto is of task unpaired-preference, whose rows are {prompt, completion, label}."
        return single if name == "kto" else super()._elsewhere(name)

    def check_columns(self, columns: Sequence[str]) -> None:
        if columns_of(columns) is None:
            raise DataError(
                f"the data has columns {column_names(columns) or '(none)'}; preferences need `prompt`, `chosen` and "
                "`rejected` (or those of OpenAI, ms-swift or Axolotl). Rename columns with data.columns, e.g. "
                "{chosen: COLUMN, rejected: COLUMN}."
            )

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        """Recognise two answers to a prompt, in any supported layout or under other column names."""
        if columns_of(columns) is not None:
            names = dict.fromkeys(name for row in rows if (name := layout_of(row)))
            return Recognised(3, layout=" and ".join(names))
        columns_by_name = {ours: first_of(names, columns) for ours, names in OTHER_NAMES.items()}
        recognised_columns = {ours: theirs for ours, theirs in columns_by_name.items() if theirs is not None}
        return Recognised(2, renamed(**recognised_columns)) if len(recognised_columns) == len(OTHER_NAMES) else None

    def view(self, row: Example) -> View:
        """Return the prompt as input, and both answers as the target."""
        try:
            pair = preference(row)
            chosen, rejected = (language_rows.view(_side(pair, side), all_trained=False) for side in SIDES)
        except DataError:
            return language_rows.unreadable(row)
        texts = [*chosen.texts, *(text for text in rejected.texts if text not in chosen.texts)]
        target = {"chosen": chosen.target, "rejected": rejected.target}
        return View(chosen.inputs, target, texts=texts, identity=[chosen.identity, rejected.identity])

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        pair = preference(row)
        changed = language_rows.with_inputs(_side(pair, "chosen"), inputs)
        return {**pair, "prompt": changed["prompt"]}

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return input_ids and labels of both sides; `weight` is 1 for a pair whose answers differ."""
        row = self.as_read(preference(example), processor)
        for side in SIDES:
            if (parts := self._language.parts(_side(row, side), processor)) > 1:
                raise DataError(
                    f"`{side}` has turns that the chat template writes differently when others follow, so that they "
                    f"make {parts} sequences, but a pair compares one of each side. Move turns that both sides share "
                    "into `prompt`, or leave such rows out with data.on_error=skip."
                )
        return self.encode_pair(example, processor, max_length=max_length)

    def encode_pair(
        self, example: Example, processor: Any, *, max_length: int | None = None, behind: bool = False
    ) -> Features:
        """Encode a pair; if the chat template writes a side's turns as several sequences, the last one.

        `behind` keeps the template's text after the answers (`cut_to`).
        """
        limit = length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)
        row = self.as_read(preference(example), processor)
        both_sides = [self._language.encode(_side(row, side), processor) for side in SIDES]
        if not all(trains(side.inputs) for side in both_sides):
            raise DataError("an answer has no trained tokens, because its messages have weight 0.")
        sides, full, cut = cut_to(limit, both_sides, processor, behind=behind)
        counts = with_layout(both_sides[0].counts, layout_of(example))
        if cut:
            counts.pop("end_of_turn", None)
        tokens = [sum(label != IGNORED for label in side["labels"]) for side in sides]
        counts |= {"pairs": 1, "longer_chosen": tokens[0] > tokens[1], "longer_rejected": tokens[0] < tokens[1]}
        differ = sides[0]["input_ids"] != sides[1]["input_ids"]
        why = "" if differ else EQUAL_AS_CUT if cut else EQUAL
        if not all(trains(side) for side in sides):
            why = CUT_OFF
        longest = max(len(side["input_ids"]) for side in sides)
        return Features(
            {**sides[0], **{f"{REJECTED}{key}": ids for key, ids in sides[1].items()}},
            length=2 * longest,
            weight=int(not why),
            truncated=full > limit,
            longest=longest,
            full_length=full,
            unknown=unknown_of_all(both_sides),
            untrained=why,
            counts={name: int(count) for name, count in counts.items()},
            kind=both_sides[0].kind,
        )

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:  # type: ignore[override]
        """Stack the chosen sides of all pairs, and then the rejected ones: (2n, T)."""
        return stack_tokens(
            [_of_side(example.inputs, start) for start in ("", REJECTED) for example in features], processor
        )

    def pairs(self, model: nn.Module, batch: Batch) -> Pairs:
        """Return the log-probabilities of both answers of each pair."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logps, counts = self._loss.log_probs(model, inputs, batch["labels"])
        reference_values = batch.get("reference", {}) if self.reference else {}
        reference = [reference_values.get(f"{side}_logp") for side in SIDES]
        return Pairs(*logps.chunk(2), *counts.chunk(2), *reference)

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (summed losses of the pairs, their number)."""
        pairs = self.pairs(model, batch)
        losses = require_each(self.preference_loss, self.sound_loss(pairs), len(pairs.chosen))
        return losses.sum(), len(losses)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return log-probabilities and tokens of both answers, and the margin of the loss.

        Without a reference in the batch, the model is its own reference.
        """
        import torch

        with torch.no_grad():
            pairs = self.pairs(model, batch)
        if self.reference and pairs.reference_chosen is None:
            pairs = Pairs(*(getattr(pairs, key) for key in list(vars(pairs))[:4]), pairs.chosen, pairs.rejected)
        columns = {
            "chosen_logp": pairs.chosen,
            "rejected_logp": pairs.rejected,
            "chosen_tokens": pairs.chosen_tokens,
            "rejected_tokens": pairs.rejected_tokens,
            "margin": self.preference_loss.margin(pairs),
        }
        if self.reference:
            columns[DIVERGENCE] = pairs.divergence
        lists = {name: column.tolist() for name, column in columns.items()}
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode the prompt, then each side's answer."""
        prompt, *_ = chosen = pieces_of(_of_side(features.inputs, ""), processor)
        rejected = pieces_of(_of_side(features.inputs, REJECTED), processor)
        shown = [] if prompt[1] else [prompt]
        for side, pieces in zip(SIDES, (chosen, rejected), strict=True):
            shown += [(f"\n{side}: ", False), *pieces[len(shown[:1]) :]]
        return shown

    def question(self, row: Example) -> Example:
        """Return the question of a row; for a preference, its prompt."""
        if pair_of(row) is None:
            return row
        pair = preference(row)
        return {name: value for name, value in pair.items() if name not in SIDES}

    def as_read(self, row: Example, processor: Any) -> Example:
        """Return a conversation in one text, as in HH-RLHF, as messages if the model has a chat template."""
        prompt = dialogue(row.get("prompt"))
        if not prompt or self.config.chat_template == "never" or not has_template(processor):
            return row
        answers = {name: dialogue(f"{ANSWER}{row[name]}") for name in (*SIDES, "completion") if row.get(name)}
        return {**row, "prompt": prompt, **answers}

    def answered(self, row: Example) -> Example:
        """Return the prompt with the chosen answer."""
        return _side(preference(row), "chosen")


def _side(row: Example, side: str) -> dict[str, Any]:
    """Return one side of a pair as a prompt with its completion."""
    rest = {name: value for name, value in row.items() if name not in (*SIDES, "messages", "text")}
    return {**rest, "completion": row[side]}


def _of_side(inputs: Mapping[str, Any], start: str) -> dict[str, list[int]]:
    """Return the tokens of one side, whose keys begin with `start`."""
    return {key: inputs[f"{start}{key}"] for key in ("input_ids", "labels")}
