"""Batched generation that does not depend on padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ftengine.errors import DataError, InputError, TrainingError, did_you_mean
from ftengine.model.tokens import attention_mask, pad

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11

    from torch import Tensor

    from ftengine.api import LoadedModel


class GenerationOptions(BaseModel):
    """How answers are generated."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token; above, tokens are sampled")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens that hold this probability")
    seed: int | None = Field(
        None,
        ge=0,
        description="random seed of sampling; equal prompts get equal draws; null draws differently every time",
    )
    sample: int | None = Field(
        None,
        ge=0,
        description="number of the answer, from 0, if several are drawn for a prompt; null for a single answer",
    )

    @classmethod
    def read(cls, options: Mapping[str, Any] | None) -> Self:
        """Validate options. Raises InputError, which names the option, its value and what is allowed."""
        try:
            return cls.model_validate(dict(options or {}))
        except ValidationError as error:
            problem = error.errors()[0]
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            names = list(cls.model_fields)
            raise InputError(f"unknown option {name!r}. Allowed: {', '.join(names)}." + did_you_mean(name, names))
        raise InputError(f"option {name!r}: {problem['msg']} (got {problem['input']!r}).")


def sampling(options: Mapping[str, Any], samples: int, seed: int) -> dict[str, Any]:
    """Return the options for drawing several answers to a row.

    Raises:
        InputError: all answers would be equal.
    """
    drawn = {"temperature": 1.0, "seed": seed, **options}
    if samples > 1 and not drawn["temperature"]:
        raise InputError(f"{samples} answers of temperature 0 would be equal. Set it above 0.")
    return drawn


_TOLD: ContextVar[Callable[[int], None] | None] = ContextVar("told", default=None)


@contextmanager
def streaming(tell: Callable[[int], None]) -> Iterator[None]:
    """Within the block, pass each new token to a callback; one prompt at a time."""
    before = _TOLD.set(tell)
    try:
        yield
    finally:
        _TOLD.reset(before)


class _Streamer:
    """A transformers streamer that passes new tokens on, without the prompt's."""

    def __init__(self, tell: Callable[[int], None], stop: Sequence[int]) -> None:
        self._tell, self._stop, self._begun = tell, stop, False

    def put(self, tokens: Tensor) -> None:
        if self._begun:
            for token in tokens.flatten().tolist():
                if token not in self._stop:
                    self._tell(token)
        self._begun = True

    def end(self) -> None:
        """Do nothing: the block ends."""


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    stop: Sequence[int],
    samples: Sequence[int] | None = None,
) -> list[list[int]]:
    """Answer prompts as `generate_ended` does; return the new tokens of each, without the end token."""
    return [answer for answer, _ in generate_ended(loaded, prompts, options, stop, samples)]


def generate_ended(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    stop: Sequence[int],
    samples: Sequence[int] | None = None,
) -> list[tuple[list[int], int | None]]:
    """Answer prompts, all in one batch; return the new tokens of each, and the token of `stop` that ended it, or None.

    A decoder continues token ids, padded on the left; an encoder-decoder reads them, padded on the right as in
    training. Sampling for a prompt depends on the seed, the prompt and its number in `samples` (0 if not given), not on
    the rest of the batch.

    Raises:
        DataError: a prompt leaves no room for its answer.
        InputError: the model cannot generate.
        TrainingError: its logits are not finite.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    from ftengine.model.modes import evaluating
    from ftengine.model.token_loss import head_by_rows, is_encoder_decoder

    module: Any = loaded.module
    if not hasattr(module, "generate"):
        raise InputError(f"{type(module).__name__} cannot generate text; it has no `generate` method.")
    longest, encoder_decoder = max(map(len, prompts)), is_encoder_decoder(loaded.module)
    needed = max(longest, options.max_new_tokens) if encoder_decoder else longest + options.max_new_tokens
    if loaded.max_length is not None and needed > loaded.max_length:
        either = "or" if encoder_decoder else "and"
        count = f"{longest} tokens" if longest < 2 * loaded.max_length else f"{longest} or more tokens"  # as it was cut
        raise DataError(
            f"a prompt of {count} {either} max_new_tokens {options.max_new_tokens} exceed the "
            f"{loaded.max_length} tokens that this model reads. Shorten the prompt or lower max_new_tokens."
        )
    device = next(loaded.module.parameters()).device
    filler, processors = loaded.processor.pad_token_id or 0, list[Any]([_require_finite])
    if options.temperature > 0:
        draw = Draw(prompts, int(torch.randint(2**62, ())) if options.seed is None else options.seed, samples)
        processors += [TemperatureLogitsWarper(options.temperature), TopPLogitsWarper(options.top_p), draw]
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=False,  # `Draw` leaves one token
        eos_token_id=sorted(set(stop)) or None,
        pad_token_id=filler,
    )
    ids = pad(prompts, filler, left=not encoder_decoder).to(device)
    mask = attention_mask(prompts, left=not encoder_decoder).to(device)
    with torch.no_grad(), evaluating(loaded.module):
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        for path in () if encoder_decoder else loaded.inference_paths:
            inputs |= path.generation_inputs(module, inputs["input_ids"], inputs["attention_mask"])
        with head_by_rows(module):
            streamer = None if (tell := _TOLD.get()) is None else _Streamer(tell, stop)
            made = LogitsProcessorList(processors)
            output = module.generate(**inputs, generation_config=config, logits_processor=made, streamer=streamer)
    # An encoder-decoder's output begins with the token that its decoder starts from.
    return [_ended(answer, stop) for answer in output[:, 1 if encoder_decoder else longest :].tolist()]


def _ended(answer: list[int], stop: Sequence[int]) -> tuple[list[int], int | None]:
    """Return an answer up to the first token of `stop`, and that token (None if there is none)."""
    length = next((i for i, token in enumerate(answer) if token in stop), None)
    return answer[:length], None if length is None else answer[length]


class Draw:
    """Draws each prompt's next token with random numbers of its own, one a step, by the inverse of the distribution."""

    def __init__(self, prompts: Sequence[Sequence[int]], seed: int, samples: Sequence[int] | None) -> None:
        keys = zip(samples or [0] * len(prompts), prompts, strict=True)
        self._streams = [np.random.default_rng([seed, sample, *prompt]) for sample, prompt in keys]

    def __call__(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """Return (batch, vocabulary) logits of which all but the drawn token's are -infinity."""
        import torch

        reached = logits.double().softmax(-1).cumsum(-1)
        drawn = reached.new_tensor([[stream.random()] for stream in self._streams]) * reached[:, -1:]
        chosen = (reached > drawn).int().argmax(-1, keepdim=True)  # the first; none that cannot be drawn is
        return torch.full_like(logits, -torch.inf).scatter(-1, chosen, 0.0)


def _require_finite(tokens: Tensor, logits: Tensor) -> Tensor:
    """Refuse logits among which there is no likeliest token: NaN, or infinite; some may be ruled out by -infinity.

    As `generate` calls it, with (batch, length) tokens so far and (batch, vocabulary) logits of the next, returned.
    """
    if not bool(logits.amax(-1).isfinite().all()):
        raise TrainingError(
            "the model's logits are not finite, so that it has no likeliest token. Compute in float32 "
            "(train.precision; predict --precision float32), or look at the base model and at what training did to it."
        )
    return logits


def complete(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    stop: Sequence[int],
    samples: Sequence[int] | None = None,
) -> list[str]:
    """Answer prompts as `generate` does; return the answers as text, without special tokens."""
    answers = generate(loaded, prompts, options, stop, samples) if prompts else []
    return [loaded.processor.decode(answer, skip_special_tokens=True) for answer in answers]


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


def made_to_fit(
    loaded: LoadedModel, prompts: Sequence[list[int]], options: GenerationOptions
) -> tuple[list[list[int]], GenerationOptions]:
    """Shorten prompts and options to the model's limit, so that a long row does not end an evaluation.

    At most half of the limit is generated; a prompt that leaves less room loses its beginning.
    """
    if loaded.max_length is None:
        return list(prompts), options
    new = max(1, min(options.max_new_tokens, loaded.max_length // 2))
    room = loaded.max_length - new
    return [prompt[-room:] for prompt in prompts], options.model_copy(update={"max_new_tokens": new})
