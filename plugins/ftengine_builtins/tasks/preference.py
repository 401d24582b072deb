"""Preference tuning: of two answers to a prompt, one is to become likelier than the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ftengine.api import Batch, Config, Example, Features, LoadedModel, Prediction, Prompt, Recognised, TaskTraits, View
from ftengine.errors import DataError, RecipeError, did_you_mean
from ftengine.model import IGNORED
from ftengine.model.tokens import length_limit, stack_tokens
from ftengine_builtins.preference_layouts import SIDES, columns_of, pair_of, preference
from ftengine_builtins.tasks import language_rows
from ftengine_builtins.tasks.causal_lm import DEFAULT_MAX_LENGTH, CausalLM, CausalLMConfig
from ftengine_builtins.tasks.generative import GenerativeTask
from ftengine_builtins.tasks.preference_losses import LOSSES, Pairs, PreferenceLoss

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftengine.model import Criterion

WHOLE = 1 << 40
"""Tokens that no text has: what is written is cut here, both sides alike."""
LANGUAGE = ("thoughts", "chat_template", "chat_template_kwargs", "system")
"""Options that are those of task causal-lm."""
REFERENCE = "reference."
"""In front of a key of `predict`, what a batch has of the reference."""
REJECTED = "rejected_"
"""In front of the keys of the rejected side's features."""
EQUAL = "both answers are the same as they are written"
EQUAL_AS_CUT = "both answers are the same up to task.max_length"
CUT_OFF = "what is trained on of an answer lies behind task.max_length"


class PreferenceConfig(Config):
    """Options of task preference."""

    loss: str | None = Field(
        None, description="dpo, robust, cdpo, ipo, sigmoid-norm, simpo, orpo or cpo; null: the first of them"
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="how far the model may go from the reference: the smaller, the further; without one, the "
        "steepness, of orpo the weight of its term; null: the loss's own",
    )
    nll: float | None = Field(
        None, ge=0, description="weight of the chosen answer's loss per token beside; null: 0, of orpo and cpo 1"
    )
    label_smoothing: float | None = Field(
        None, ge=0, lt=0.5, description="robust, cdpo: share of the pairs that are the wrong way round; null: 0.1"
    )
    target_margin: float | None = Field(None, ge=0, description="simpo: γ; null: 0.5")
    max_length: int | None = Field(
        None,
        ge=4,
        description="longest prompt with its answer in tokens; null: "
        f"{DEFAULT_MAX_LENGTH}, or the model's limit if less",
    )
    thoughts: Literal["train", "mask", "remove"] = Field(
        "train", description="what the assistant thought: part of the answer, only read, or taken out"
    )
    chat_template: Literal["auto", "never"] = Field(
        "auto", description="auto writes prompt and answers as a chat where the model has a template; never: as text"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="given to the chat template, as {enable_thinking: false}; a row's own come first"
    )
    system: str | None = Field(None, min_length=1, description="system message of prompts that have none")


class Preference(GenerativeTask):
    """Prefer one answer to another: DPO, IPO, SimPO, ORPO and their like, on prompt, chosen and rejected answer.

    A row has `prompt`, `chosen` and `rejected` (texts, or lists of messages), or `chosen` and `rejected` that begin
    alike, or is a preference in the layout of OpenAI, ms-swift, Axolotl or LlamaFactory. Both sides are written as task
    causal-lm writes a prompt with its completion, and go through the model together. The tokens of the answers alone
    count. A pair that is too long loses the beginning of its prompt, on both sides as much, before its answers are cut.
    The reference of those losses that take one is the model as training begins.
    """

    name = "preference"
    traits = TaskTraits(example_model="HuggingFaceTB/SmolLM2-135M-Instruct", learning_rate_share=0.02)
    head = "causal-lm"
    Config = PreferenceConfig
    ahead = 1
    evaluators = ("preferences",)
    predicts_probabilities = False
    losses: ClassVar[tuple[type[PreferenceLoss], ...]] = LOSSES
    """Those that `task.loss` may name; the first is the default."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        own = {key: getattr(self.config, key) for key in LANGUAGE}
        self._language = CausalLM(CausalLMConfig(max_length=WHOLE, **own))
        self.preference_loss = self._chosen_loss()
        self.reference = frozenset({"chosen_logp", "rejected_logp"} if self.preference_loss.reference else ())

    predicts = frozenset({"chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens", "margin"})

    def _chosen_loss(self) -> PreferenceLoss:
        """Return the loss with its options (RecipeError: there is none of that name, or it does not read one)."""
        names = {cls.name: cls for cls in self.losses}
        name = self.config.loss or next(iter(names))
        if name not in names:
            raise RecipeError(f"task.loss is {name!r}. Allowed: {', '.join(names)}.{did_you_mean(name, names)}")
        cls, given = names[name], dict[str, Any]()
        known = {field for one in self.losses for field in one.model_fields}
        for key in sorted(known & set(type(self.config).model_fields)):
            if (value := getattr(self.config, key)) is None:
                continue
            if key not in cls.model_fields:
                readers = [one.name for one in self.losses if key in one.model_fields]
                raise RecipeError(
                    f"task.{key} is {value!r}, and loss {name} does not read it; {' and '.join(readers)} "
                    f"{'do' if len(readers) > 1 else 'does'}. Leave it out."
                )
            given[key] = value
        return cls(**given)

    def check_columns(self, columns: Sequence[str]) -> None:
        if columns_of(columns) is None:
            raise DataError(
                f"the data has columns {', '.join(columns) or '(none)'}; preferences need `prompt`, `chosen` and "
                "`rejected` (or those of OpenAI, ms-swift or Axolotl). Rename columns with data.columns, e.g. "
                "{chosen: COLUMN, rejected: COLUMN}."
            )

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        """See two answers to a prompt, in any layout that is read."""
        return None if columns_of(columns) is None else Recognised(3)

    def view(self, row: Example) -> View:
        """See the prompt as input, and both answers as the target."""
        try:
            pair = preference(row)
            chosen, rejected = (language_rows.view(_side(pair, side), all_trained=False) for side in SIDES)
        except DataError:
            values = [row.get(name) for name in ("prompt", *SIDES)]
            return View([], None, texts=[value for value in values if isinstance(value, str)], identity=values)
        texts = [*chosen.texts, *(text for text in rejected.texts if text not in chosen.texts)]
        target = [chosen.target, rejected.target]
        return View(chosen.inputs, target, texts=texts, identity=[chosen.identity, rejected.identity])

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        pair = preference(row)
        changed = language_rows.with_inputs(_side(pair, "chosen"), inputs)
        return {**pair, "prompt": changed["prompt"]}

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return input_ids and labels of both sides; `weight` is 1 for a pair whose answers differ."""
        row = preference(example)
        for side in SIDES:
            if (parts := self._language.parts(_side(row, side), processor)) > 1:
                raise DataError(
                    f"`{side}` has turns that the chat template writes differently when others follow, so that they "
                    f"make {parts} sequences, and a pair compares one of each side. Move turns that both sides share "
                    "into `prompt`, or leave such rows out with data.on_error=skip."
                )
        return self.encode_pair(row, processor, max_length=max_length)

    def encode_pair(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Encode a pair; of a side whose turns the chat template writes as several sequences, the last one."""
        limit = length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)
        row = preference(example)
        whole = [self._language.encode(_side(row, side), processor) for side in SIDES]
        if not all(_trains(one) for one in whole):
            raise DataError("an answer has no token that is trained on: its messages have weight 0.")
        sides, full, cut = cut_to(limit, whole, processor)
        counts = dict(whole[0].get("counts", {}))
        if cut:
            counts.pop("end_of_turn", None)
        tokens = [sum(label != IGNORED for label in one["labels"]) for one in sides]
        counts |= {"pairs": 1, "longer_chosen": tokens[0] > tokens[1], "longer_rejected": tokens[0] < tokens[1]}
        differ = sides[0]["input_ids"] != sides[1]["input_ids"]
        why = None if differ else EQUAL_AS_CUT if cut else EQUAL
        if not all(_trains(one) for one in sides):
            why = CUT_OFF
        longest = max(len(one["input_ids"]) for one in sides)
        unknown = [one["unknown"] for one in whole]
        return {
            **sides[0],
            **{f"{REJECTED}{key}": ids for key, ids in sides[1].items()},
            "length": 2 * longest,
            "longest": longest,
            "weight": int(why is None),
            "full_length": full,
            "truncated": full > limit,
            "unknown": None if None in unknown else sum(unknown),
            "counts": {name: int(count) for name, count in counts.items()},
            **({"kind": whole[0]["kind"]} if "kind" in whole[0] else {}),
            **({} if why is None else {"untrained": why}),
        }

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:  # type: ignore[override]
        """Stack the chosen sides of all pairs, and the rejected ones below them: (2n, T)."""
        return stack_tokens([_of_side(one, start) for start in ("", REJECTED) for one in features], processor)

    def pairs(self, model: nn.Module, batch: Batch) -> Pairs:
        """Return the log-probabilities of both answers of each pair."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logps, counts = self._loss.log_probs(model, inputs, batch["labels"])
        reference = [batch.get(f"{REFERENCE}{side}_logp") for side in SIDES] if self.reference else [None, None]
        return Pairs(*logps.chunk(2), *counts.chunk(2), *reference)

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (summed losses of the pairs, their number)."""
        losses = self.preference_loss(self.pairs(model, batch))
        return losses.sum(), len(losses)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return log-probabilities and tokens of both answers, and the margin of the loss.

        Where the batch has no reference, the model is its own.
        """
        import torch

        from ftengine.model.forest import as_forest

        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad(), as_forest(model, inputs):
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
        lists = {name: column.tolist() for name, column in columns.items()}
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        return dict(prediction)

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode the prompt, then each side's answer."""
        prompt, *_ = chosen = self._language.decode_example(_of_side(features, ""), processor)
        rejected = self._language.decode_example(_of_side(features, REJECTED), processor)
        shown = [] if prompt[1] else [prompt]
        for side, pieces in zip(SIDES, (chosen, rejected), strict=True):
            shown += [(f"\n{side}: ", False), *pieces[len(shown[:1]) :]]
        return shown

    def check_input(self, row: Example) -> None:
        self._language.check_input(_question(row))

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"completion": text} for each row, as task causal-lm does."""
        return self._language.infer(loaded, [_question(row) for row in rows], options)

    def generate(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return {"prompt", "completion", "reference"} for each row, whose reference is the chosen answer."""
        return self._language.generate(loaded, [_side(preference(row), "chosen") for row in rows], options)

    def prompt(self, row: Example, loaded: LoadedModel) -> Prompt:
        return self._language.prompt(_question(row), loaded)


def cut_to(limit: int, whole: Sequence[Features], processor: Any) -> tuple[list[Features], int, bool]:
    """Cut answers to a prompt to a number of tokens: the beginning of the prompt first, on all of them as much.

    A BOS in front stays there.

    Returns:
        tokens and labels of each; how many the longest had; whether an answer was cut.
    """
    places = [[i for i, label in enumerate(one["labels"]) if label != IGNORED] for one in whole]
    full = max(place[-1] for place in places) + 1  # what a template writes behind an answer is of no use
    bos = getattr(processor, "bos_token_id", None)
    kept = int(full > limit and bos is not None and all(one["input_ids"][0] == bos for one in whole))
    room = limit - kept
    start = max(kept, min(full - room, min(place[0] for place in places) - room // 2))
    sides = [
        {
            "input_ids": one["input_ids"][:kept] + one["input_ids"][start : min(start + room, place[-1] + 1)],
            "labels": [IGNORED] * kept + one["labels"][start : min(start + room, place[-1] + 1)],
        }
        for one, place in zip(whole, places, strict=True)
    ]
    return sides, full, full - start > room


def _trains(features: Features) -> bool:
    """Say whether a token is trained on; the first one is never predicted."""
    return any(label != IGNORED for label in features["labels"][1:])


def _side(row: Example, side: str) -> dict[str, Any]:
    """Return one side of a pair as a prompt with its completion."""
    rest = {name: value for name, value in row.items() if name not in (*SIDES, "messages", "text")}
    return {**rest, "completion": row[side]}


def _question(row: Example) -> Example:
    """Return a row as what is to be answered: of a preference its prompt."""
    if pair_of(row) is None:
        return row
    pair = preference(row)
    return {name: value for name, value in pair.items() if name not in SIDES}


def _of_side(features: Features, start: str) -> Features:
    """Return the tokens of one side; `start` is what its keys begin with."""
    return {key: features[f"{start}{key}"] for key in ("input_ids", "labels")}
