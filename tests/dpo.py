"""Preference tuning (DPO) as a third party writes it: public names only."""

from contextlib import nullcontext

import numpy as np
import torch
from pydantic import Field

from ftengine.api import Config, Evaluator, Metric, Task, View, overrides
from ftengine.errors import DataError, RecipeError
from ftengine.model import TokenLoss, encode_conversation, evaluating, length_limit, read_conversation, stack_tokens


class DPO(Task):
    """Prefer one answer to another (Rafailov et al. 2023, arXiv:2305.18290). A row has prompt, chosen and rejected."""

    name = "dpo"
    head = "causal-lm"
    modality = "text"
    evaluators = ("preferences",)
    predicts = frozenset({"margin"})

    class Config(Config):
        """How far the model may go from its base."""

        beta: float = Field(0.1, gt=0, description="of the implicit reward: the smaller, the further")

    def __init__(self, config=None):
        super().__init__(config)
        self.tokens, self.reference = TokenLoss(), nullcontext

    def set_model(self, loaded, strategy):
        if strategy is not None and not overrides(strategy, "disabled"):
            raise RecipeError(f"task dpo compares with the base, as which strategy {strategy.name} cannot answer.")
        self.reference = nullcontext if strategy is None else lambda: strategy.disabled(loaded)

    def view(self, row):
        return View([row.get("prompt")], [row.get("chosen"), row.get("rejected")])

    def with_inputs(self, row, inputs):
        return {**row, "prompt": inputs[0]}

    def encode(self, row, processor, *, max_length=None):
        if not all(isinstance(row.get(name), str) and row[name] for name in ("prompt", "chosen", "rejected")):
            raise DataError("a row needs `prompt`, `chosen` and `rejected`, each with some text.")
        limit, pair = length_limit(None, max_length, 1024), []
        for side in ("chosen", "rejected"):
            turns = read_conversation({"prompt": row["prompt"], "completion": row[side]})
            ids, labels = encode_conversation(processor, turns)
            pair.append({"input_ids": ids[:limit], "labels": labels[:limit], "cut": len(ids) > limit})
        longest = max(len(one["input_ids"]) for one in pair)
        return {"pair": pair, "length": 2 * longest, "longest": longest, "weight": 1, "truncated": pair[0]["cut"]}

    def collate(self, features, processor):
        return stack_tokens([one["pair"][side] for side in (0, 1) for one in features], processor)

    def margins(self, model, batch):
        """Return (B,) differences between the implicit rewards of chosen and rejected answers."""
        chosen, rejected = self.tokens.log_probs(model, batch, batch["labels"])[0].chunk(2)
        with torch.no_grad(), evaluating(model), self.reference():
            base_chosen, base_rejected = self.tokens.log_probs(model, batch, batch["labels"])[0].chunk(2)
        return self.config.beta * ((chosen - base_chosen) - (rejected - base_rejected))

    def loss(self, model, batch, criterion):
        margins = [self.margins(model, batch)[:, None] for _ in range(criterion.passes)]
        return criterion.multi(torch.ones_like(margins[0]), *margins).sum(), len(margins[0])

    def predict(self, model, batch):
        return [{"margin": margin} for margin in self.margins(model, batch).tolist()]


class Preferences(Evaluator):
    """How often the chosen answer gained more than the rejected one."""

    name = "preferences"
    reads = frozenset({"margin"})
    metrics = {"preference_accuracy": Metric("preference accuracy", True, True)}  # noqa: RUF012

    def score(self, rows, weights):
        won = (rows["margin"] > 0) + 0.5 * (rows["margin"] == 0)
        return {"preference_accuracy": float(np.average(won, weights=weights))}
