"""Sampled answers of on-policy tasks: drawing them, their log-probabilities, and collating them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ftengine.api import Batch, DrawRequest, Features, LoadedModel
from ftengine.generation import Answer, GenerationOptions, draw_answers
from ftengine.model import IGNORED, Criterion
from ftengine.model.tokens import stack_tokens
from ftengine.text import counted
from ftengine_builtins.rewards import Scored
from ftengine_builtins.tasks.policy_losses import DECIMALS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftengine.model import TokenLoss

LOGPS = "sampled_logps", "drawn_logps", "reference_logps"
"""Keys of a batch for log-probabilities of tokens by whatever drew them, by the loss's own computation when they were
drawn, and of the model before training."""


@dataclass(frozen=True)
class DrawnAnswer:
    """A sampled answer.

    Args:
        prompt: tokens of the prompt.
        asked: the question as text.
        ids: tokens of the answer, including the end token if there is one.
        text: the answer as reward functions get it.
        ended: whether the model ended it before the maximal length.
        sampled: log-probabilities of `ids` from the sampler; None if it does not report them.
        drawn, reference: log-probabilities as the loss computes them, by the sampling model and by the reference; None
            if the loss does not need them.
        scored: the rewards of the answer.
        attempt: how often the prompt was answered before in its step.
        own: which of `ids` the model drew, and not a reply; None: all. Log-probabilities are of these alone.
        turns: of several turns, {"role", "content"} of each, of the assistant's with {"calls"} where it has any.
        error: why an exchange could not go on; such an answer has no reward.
    """

    prompt: list[int]
    asked: str
    ids: list[int]
    text: str
    ended: bool
    sampled: list[float] | None = None
    drawn: list[float] | None = None
    reference: list[float] | None = None
    scored: Scored | None = None
    attempt: int = 0
    own: list[bool] | None = None
    turns: tuple[Mapping[str, Any], ...] = ()
    error: str = ""

    @property
    def tokens(self) -> int:
        """How many tokens the model drew."""
        return len(self.ids) if self.own is None else sum(self.own)

    @property
    def total(self) -> float:
        """The sum of the rewards; nan without a reward."""
        return math.nan if self.scored is None or self.scored.total is None else self.scored.total

    def record(self, advantage: float, names: Sequence[str]) -> dict[str, Any]:
        """Return the answer's line in draws.jsonl; `names` are the names of the rewards."""
        rewards = dict(zip(names, self.scored.rewards if self.scored else (), strict=False))
        error = {"error": self.scored.error} if self.scored and self.scored.error else {}
        total = self.scored.total if self.scored else None
        figures = {"reward": total, "advantage": advantage, "tokens": self.tokens, "ended": self.ended}
        turns = {"turns": list(self.turns)} if self.turns else {}
        return {"prompt": self.asked, "answer": self.text, **turns, "rewards": rewards, **figures, **error}

    def features(self, advantage: float, weight: float) -> Features:
        """Return the answer as an encoded example."""
        inputs = example(self.prompt, self.ids, advantage, self.own)
        drawn = [len(self.prompt) + i for i, own in enumerate(self.own or [True] * len(self.ids)) if own]
        for key, values in zip(LOGPS, (self.sampled, self.drawn, self.reference), strict=True):
            if values is not None:
                inputs[key] = [0.0] * (len(self.prompt) + len(self.ids))
                for place, value in zip(drawn, values, strict=True):
                    inputs[key][place] = value
        return Features(inputs, len(self.prompt) + len(self.ids), weight, not self.ended)


def example(
    prompt: Sequence[int], ids: Sequence[int], advantage: float, own: Sequence[bool] | None = None
) -> dict[str, Any]:
    """Return the inputs of a prompt with an answer, of which only its `own` tokens are trained; None: all."""
    trained = ids if own is None else [token if drew else IGNORED for token, drew in zip(ids, own, strict=True)]
    labels = [IGNORED] * len(prompt) + list(trained)
    return {"input_ids": [*prompt, *ids], "labels": labels, "advantage": advantage}


def collated(features: Sequence[Features], processor: Any) -> Batch:
    """Return tokens and labels (n, T), padded on the right, advantages (n,), log-probabilities (n, T) if any."""
    import torch

    inputs = [one.inputs for one in features]
    batch = stack_tokens(inputs, processor)
    batch["advantages"] = torch.tensor([one["advantage"] for one in inputs], dtype=torch.float32)
    for key in LOGPS:
        if key in inputs[0]:
            values = torch.zeros(batch["labels"].shape)
            for row, one in zip(values, inputs, strict=True):
                row[: len(one[key])] = torch.tensor(one[key])
            batch[key] = values
    return batch


def step_seed(seed: int, step: int) -> int:
    """Return the seed of a step's draws."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def draw_groups(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    each: int,
    options: GenerationOptions,
    stop: Sequence[int],
    attempt: int = 0,
) -> list[list[Answer]]:
    """Draw several answers to each prompt from the model's own distribution; `stop` are the end tokens.

    Answers of another attempt have other numbers.
    """
    repeated = [prompt for prompt in prompts for _ in range(each)]
    numbers = [*range(attempt * each, (attempt + 1) * each)] * len(prompts)
    answers = draw_answers(loaded, repeated, options, stop, numbers, own_settings=False)
    return [answers[start : start + each] for start in range(0, len(answers), each)]


class Tempered(Criterion):
    """A criterion, -log π of labels at a temperature, that records the distributions' entropies, (N,), by call."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self.entropies: list[Tensor] = []

    def single(self, targets: Tensor, *logits: Tensor) -> Tensor:
        import torch

        logs = (logits[0] / self._temperature).log_softmax(-1)
        self.entropies.append(torch.special.entr(logs.detach().exp()).sum(-1))
        return -logs.gather(-1, targets[:, None])[:, 0]


def log_probabilities(
    loss: TokenLoss, request: DrawRequest, answers: Sequence[DrawnAnswer], temperature: float
) -> list[list[float]]:
    """Return the log-probability of each token of each answer, as the loss computes it."""
    module: nn.Module = request.loaded.module
    device, values = next(module.parameters()).device, list[list[float]]()
    for start in range(0, len(answers), request.size):
        some = answers[start : start + request.size]
        batch = stack_tokens([example(one.prompt, one.ids, 0.0, one.own) for one in some], request.loaded.processor)
        batch = {key: tensor.to(device) for key, tensor in batch.items()}
        labels = batch.pop("labels")
        losses, _ = loss.each(module, batch, labels, Tempered(temperature))
        lengths = [one.tokens for one in some]
        values += [part.tolist() for part in (-losses).split(lengths)]
    return values


def flat(group: Sequence[DrawnAnswer]) -> bool:
    """Return whether answers with rewards all have the same one, up to rounding."""
    return len({round(one.total, DECIMALS) for one in group if not math.isnan(one.total)}) == 1


def overlong(tokens: int, longest: int, buffer: int) -> float:
    """Return the soft punishment of length: 0 up to `longest - buffer` tokens, -1 at `longest`, linear between.

    (Yu et al. 2025, arXiv:2503.14476, eq. 13.)
    """
    return max(-1.0, min(0.0, (longest - buffer - tokens) / buffer))


def reward_figures(scored: Sequence[Sequence[DrawnAnswer]], rewards: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Return figures of a step's answers, by prompt, and of their rewards (prompts, answers); nan: no reward."""
    answers = [one for group in scored for one in group]
    known = rewards[~rewards.isnan()]
    groups = [own for group in rewards if len(own := group[~group.isnan()]) > 1]
    stds = [own.std().item() for own in groups]
    flat = [len(own.round(decimals=DECIMALS).unique()) == 1 for own in groups]
    figures = {
        "reward": known.mean().item() if len(known) else math.nan,
        "reward_std": sum(stds) / len(stds) if stds else math.nan,
        "zero_spread": sum(flat) / len(flat) if flat else math.nan,
        "answer_tokens": sum(one.tokens for one in answers) / len(answers),
        "cut_off": sum(not one.ended for one in answers) / len(answers),
        "answers": len(answers),
        "failed": sum(math.isnan(one.total) for one in answers),
    }
    for i, name in enumerate(names if len(names) > 1 else ()):
        own = [x for one in answers if one.scored and (x := one.scored.rewards[i]) is not None]
        figures[f"reward/{name}"] = sum(own) / len(own) if own else math.nan
    return figures


def repeat_figures(scored: Sequence[Sequence[DrawnAnswer]]) -> dict[str, float]:
    """Return the share of answers that another one to their prompt equals, and the share expected of chance.

    An answer of probability p is equalled by one of G - 1 others with probability 1 - (1 - p)^(G - 1).
    """
    same, expected = list[bool](), list[float]()
    for group in scored:
        counts = Counter(tuple(one.ids) for one in group)
        for one in group:
            if one.sampled is not None:
                same.append(counts[tuple(one.ids)] > 1)
                expected.append(1 - (1 - math.exp(min(0.0, sum(one.sampled)))) ** (len(group) - 1))
    return {"repeated": sum(same) / len(same), "repeated_by_chance": sum(expected) / len(same)} if same else {}


def why_unscored(scored: Sequence[Sequence[DrawnAnswer]]) -> str:
    """Return the reason why no answer of a step has a reward; "" if some have one."""
    answers = [one for group in scored for one in group]
    if not all(math.isnan(one.total) for one in answers):
        return ""
    error = next((one.scored.error for one in answers if one.scored and one.scored.error), "they have no score")
    return (
        f"the reward functions failed at all {counted(len(answers), 'answer')}: {error}. Correct the function; "
        "`ftengine plan` tries it."
    )


def why_idle(scored: Sequence[Sequence[DrawnAnswer]], rewards: Tensor, trains_truncated: bool) -> str:
    """Return the reason why no answer of a step has an advantage, given that some have a reward."""
    answers = [one for group in scored for one in group]
    failed = sum(math.isnan(one.total) for one in answers)
    if not any(int((~group.isnan()).sum()) > 1 for group in rewards):
        return f"no prompt has two answers with a reward to compare, as {failed:,} of {len(answers):,} have none"
    values = sorted({round(x, DECIMALS) for x in rewards[~rewards.isnan()].tolist()})
    if len(values) == 1:
        return f"every answer got the reward {values[0]:g}, so none is better than another"
    if not trains_truncated and (cut := sum(not one.ended for one in answers)):
        return (
            f"{cut:,} of {counted(len(answers), 'answer')} were cut off, which task.mask_truncated leaves out, and the "
            "others teach nothing"
        )
    return "all answers to a prompt got the same reward, so none is better than another"
