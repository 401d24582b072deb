"""Log-probabilities of given tokens, by a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    loaded: LoadedModel,
    prompt: Sequence[int],
    answer: Sequence[int],
    ends: Sequence[int] = (),
    inputs: Mapping[str, Tensor] = MappingProxyType({}),
) -> Tensor:
    """Return (tokens, 2): the log-probability of each token of an answer, and of the likeliest token there.

    If the last token is one of `ends`, the likeliest of `ends` is scored instead. `inputs` are those of the prompt.
    """
    import torch

    device = next(loaded.module.parameters()).device
    tokens = torch.tensor([[*prompt, *answer]], device=device)
    with torch.no_grad():
        others = beside_tokens(loaded.module, inputs, len(prompt), len(answer))
        output = loaded.module(input_ids=tokens, attention_mask=torch.ones_like(tokens), **others)
    logits = output.logits[0, len(prompt) - 1 : -1]
    scores = logits.float().log_softmax(-1)
    chosen = scores.gather(-1, tokens[0, len(prompt) :, None])[:, 0]
    if answer and answer[-1] in ends:
        chosen[-1] = scores[-1, list(ends)].amax()
    return torch.stack((chosen, scores.amax(-1)), dim=-1)


def beside_tokens(module: nn.Module, inputs: Mapping[str, Tensor], prompt: int, answer: int = 0) -> dict[str, Tensor]:
    """Return a prompt's inputs beside its tokens, as the module reads them before an answer.

    Values of each token, (1, prompt), go on with 0 for the answer's.
    """
    from torch.nn.functional import pad

    own = next(module.parameters())
    moved = {
        name: value.to(own.device, own.dtype if value.is_floating_point() else None) for name, value in inputs.items()
    }
    return {name: pad(value, (0, answer)) if value.shape == (1, prompt) else value for name, value in moved.items()}
