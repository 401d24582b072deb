"""Choosing the next token of answers from their logits, greedily or by sampling.

A sampled token is a function of the seed, the prompt, the answer's number and the position. Each token's probability is
divided by an exponential random number, and the token with the largest quotient is chosen (Gumbel-max). The logits of
one answer differ by rounding with the other answers of its batch; this changes a sampled token only if two tokens
nearly tie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ftengine.errors import TrainingError
from ftengine.generation.options import GenerationOptions

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 256
"""Numbers of a row that are reduced together; the likeliest of a block is found before the likeliest block's token."""


@dataclass
class Answer:
    """A model's answer to a prompt.

    Args:
        tokens: the new tokens, without the one that ended the answer.
        ended_by: the token that ended it; None where it reached the longest length.
        log_probabilities: of each token, `ended_by` included, under the distribution that it was sampled from; empty
            for greedy answers.
    """

    tokens: list[int] = field(default_factory=list)
    ended_by: int | None = None
    log_probabilities: list[float] = field(default_factory=list)


@dataclass
class Growing:
    """An answer that is being generated.

    Args:
        prompt: token ids.
        random: draws a number for each token of the vocabulary; None for greedy answers.
    """

    prompt: Sequence[int]
    random: np.random.Generator | None
    answer: Answer = field(default_factory=Answer)

    def ended(self, tokens: Sequence[int], stop: Sequence[int]) -> Answer:
        """Return the finished answer from transformers' output: `tokens` up to the first of `stop`."""
        length = next((i for i, token in enumerate(tokens) if token in stop), None)
        scores = self.answer.log_probabilities[: None if length is None else length + 1]
        return Answer(list(tokens[:length]), None if length is None else tokens[length], scores)


class Sampler:
    """Chooses the next token of each answer.

    Args:
        options: temperature, top_p and seed; without a seed, torch's generator draws one.
        own: the model's own generation settings (`processors_of`).
    """

    def __init__(self, options: GenerationOptions, own: Mapping[str, Any] | None = None) -> None:
        import torch

        self._options, self._processors = options, processors_of(own or {})
        given = options.seed
        self._seed = int(torch.randint(2**62, ())) if given is None and options.temperature else given or 0

    def begin(self, prompt: Sequence[int], sample: int) -> Growing:
        """Return an empty answer to a prompt; `sample` is its number."""
        drawn = self._options.temperature > 0
        return Growing(prompt, np.random.default_rng([self._seed, sample, *prompt]) if drawn else None)

    def choose(self, logits: Tensor, growing: Sequence[Growing]) -> list[int]:
        """Return the next token of each answer; log-probabilities of sampled tokens are added to the answers.

        Args:
            logits: (answers, vocabulary) of the next token.

        Raises:
            TrainingError: logits are NaN, or infinite where they are largest.
        """
        import torch

        if self._processors:
            logits = logits.float()  # as `generate` does
        for process in self._processors:
            rows = zip(logits.split(1), growing, strict=True)
            logits = torch.cat([process(_ids(answer, row.device), row) for row, answer in rows])
        return self._choose(logits, growing)

    def processor(self, growing: Sequence[Growing]) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a logits processor for transformers' `generate` that excludes all tokens but the chosen one."""
        import torch

        def process(tokens: Tensor, logits: Tensor) -> Tensor:
            chosen = torch.tensor(self._choose(logits, growing), device=logits.device)
            return torch.full_like(logits, -torch.inf).scatter(-1, chosen[:, None], 0.0)

        return process

    def _choose(self, logits: Tensor, growing: Sequence[Growing]) -> list[int]:
        import torch

        if not self._options.temperature:
            return _greedy(logits).tolist()
        logits = logits.float() / self._options.temperature
        if self._options.top_p < 1:
            from transformers import TopPLogitsWarper

            logits = TopPLogitsWarper(self._options.top_p)(None, logits)
        noise = np.empty(logits.shape, dtype=np.float32)
        for row, answer in zip(noise, growing, strict=True):
            assert answer.random is not None
            answer.random.standard_exponential(dtype=np.float32, out=row)
        tokens, scores = _draw(logits, torch.from_numpy(noise).to(logits.device))
        for answer, score in zip(growing, scores.tolist(), strict=True):
            answer.answer.log_probabilities.append(score)
        return tokens.tolist()


def _ids(growing: Growing, device: Any) -> Tensor:
    import torch

    return torch.tensor([[*growing.prompt, *growing.answer.tokens]], device=device)


def _blocks(x: Tensor, filler: float) -> Tensor:
    """Return (rows, blocks, BLOCK) of (rows, numbers), filled up at the end."""
    import torch

    missing = -x.shape[-1] % BLOCK
    return (torch.nn.functional.pad(x, (0, missing), value=filler) if missing else x).unflatten(-1, (-1, BLOCK))


def _greedy(logits: Tensor) -> Tensor:
    """Return (rows,) the first of the likeliest tokens (TrainingError: there is none)."""
    require_finite(logits.amax(-1))
    return _argmax(logits)


def _argmax(x: Tensor) -> Tensor:
    """Return (rows,) where the first of a row's largest numbers is, some seven times as fast as argmax in bfloat16."""
    import torch

    blocks = _blocks(x, -torch.inf)
    block = blocks.amax(-1).argmax(-1)
    return block * BLOCK + blocks[torch.arange(len(blocks), device=block.device), block].argmax(-1)


def _draw(logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows,) tokens and their log-probabilities.

    Args:
        logits: (rows, vocabulary) in float32; -infinity where a token is ruled out.
        noise: (rows, vocabulary) of the exponential distribution.
    """
    import torch

    highest = logits.amax(-1, keepdim=True)
    require_finite(highest)
    shares = (logits - highest).exp_()
    tokens = _argmax(shares / noise.clamp_min_(torch.finfo(noise.dtype).tiny))
    chosen = (logits.gather(-1, tokens[:, None]) - highest)[:, 0].double()
    return tokens, chosen - shares.sum(-1, dtype=torch.float64).log()


def require_finite(highest: Tensor) -> None:
    """Raise TrainingError if a row's highest logit is NaN or infinite; other logits may be -infinity."""
    if not bool(highest.isfinite().all()):
        raise TrainingError(
            "the model's logits are not finite, so that it has no likeliest token. Compute in float32 "
            "(train.precision; predict --precision float32), or look at the base model and at what training did to it."
        )


PROCESSORS = {
    "repetition_penalty": "RepetitionPenaltyLogitsProcessor",
    "no_repeat_ngram_size": "NoRepeatNGramLogitsProcessor",
    "suppress_tokens": "SuppressTokensLogitsProcessor",
}
"""Settings of a model that are applied, with transformers' class for each, in the order of `generate`."""


def processors_of(settings: Mapping[str, Any]) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """Return transformers' processors for a model's own settings.

    Each is called with (1, length) token ids, prompt included, and (1, vocabulary) logits.
    """
    import transformers

    return [getattr(transformers, kind)(settings[name]) for name, kind in PROCESSORS.items() if settings.get(name)]
