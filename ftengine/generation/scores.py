"""Log-probabilities of given tokens, by a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ftengine.api import LoadedModel


def log_probabilities(loaded: LoadedModel, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Return the log-probability of each token of an answer to a prompt, by a decoder."""
    return [float(chosen) for chosen, _ in answer_scores(loaded, prompt, answer)]


def next_log_probabilities(loaded: LoadedModel, ids: Sequence[int]) -> Tensor:
    """Return the (vocabulary,) log-probabilities of the token after a sequence, by a decoder."""
    import torch

    tokens = torch.tensor([list(ids)], device=next(loaded.module.parameters()).device)
    with torch.no_grad():
        logits = loaded.module(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -1]
    return logits.float().log_softmax(-1)


def answer_scores(
    loaded: LoadedModel, prompt: Sequence[int], answer: Sequence[int], ends: Sequence[int] = ()
) -> Tensor:
    """Return (tokens, 2): the log-probability of each token of an answer, and of the likeliest token there.

    If the last token is one of `ends`, the likeliest of `ends` is scored instead.
    """
    import torch

    device = next(loaded.module.parameters()).device
    tokens = torch.tensor([[*prompt, *answer]], device=device)
    with torch.no_grad():
        logits = loaded.module(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, len(prompt) - 1 : -1]
    scores = logits.float().log_softmax(-1)
    chosen = scores.gather(-1, tokens[0, len(prompt) :, None])[:, 0]
    if answer and answer[-1] in ends:
        chosen[-1] = scores[-1, list(ends)].amax()
    return torch.stack((chosen, scores.amax(-1)), dim=-1)
