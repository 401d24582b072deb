"""Answering prompts: by continuous batching if an inference path has a decoder, else by transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ftengine.errors import DataError, InputError
from ftengine.generation.options import GenerationOptions
from ftengine.generation.sampler import PROCESSORS, Answer, Sampler
from ftengine.generation.settings import settings_of
from ftengine.generation.slots import Slots
from ftengine.model.tokens import attention_mask, pad

if TYPE_CHECKING:
    from torch import Tensor

    from ftengine.api import LoadedModel


TOGETHER = 16
"""Prompts that transformers' `generate` answers in one batch."""
SLOTS = 64
"""Answers that grow at one time where keys and values are kept without padding."""

_STREAM: ContextVar[Callable[[int], None] | None] = ContextVar("stream", default=None)


@contextmanager
def streaming(report: Callable[[int], None]) -> Iterator[None]:
    """Within the block, pass each new token to a callback; for one prompt at a time."""
    before = _STREAM.set(report)
    try:
        yield
    finally:
        _STREAM.reset(before)


class _Streamer:
    """A transformers streamer that passes new tokens on, without the prompt's."""

    def __init__(self, report: Callable[[int], None], stop: Sequence[int]) -> None:
        self._report, self._stop, self._begun = report, stop, False

    def put(self, tokens: Tensor) -> None:
        if self._begun:
            for token in tokens.flatten().tolist():
                if token not in self._stop:
                    self._report(token)
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
    """Answer prompts as `draw_answers` does; return the new tokens of each, without the end token."""
    return [answer.tokens for answer in draw_answers(loaded, prompts, options, stop, samples)]


def draw_answers(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    stop: Sequence[int],
    samples: Sequence[int] | None = None,
    *,
    own_settings: bool = True,
) -> list[Answer]:
    """Answer prompts.

    A decoder continues token ids; an encoder-decoder reads them. A sampled answer depends only on the seed, the prompt
    and its number in `samples` (0 if not given), not on the other prompts. If an inference path of the model has a
    `Decoder`, up to `SLOTS` answers are generated at a time; otherwise transformers' `generate` answers `TOGETHER`
    prompts at a time.

    Args:
        own_settings: whether to apply the model's own generation settings that the options do not set, such as a
            repetition penalty. Without them, answers are drawn from the model's own distribution, as losses require.

    Raises:
        DataError: a prompt leaves no room for its answer.
        InputError: the model cannot generate.
        TrainingError: its logits are not finite.
    """
    import torch

    from ftengine.model.modes import evaluating
    from ftengine.model.token_loss import head_by_rows, is_encoder_decoder

    if not prompts:
        return []
    module: Any = loaded.module
    if not hasattr(module, "generate"):
        raise InputError(f"{type(module).__name__} cannot generate text; it has no `generate` method.")
    encoder_decoder, numbers = is_encoder_decoder(module), list(samples or [0] * len(prompts))
    _require_room(loaded, max(map(len, prompts)), options.max_new_tokens, encoder_decoder=encoder_decoder)
    own = settings_of(module) if own_settings else {}
    sampler = Sampler(options, own)
    with ExitStack() as stack:
        for held in (
            torch.no_grad(),
            evaluating(module),
            nullcontext() if own_settings else _without_own_settings(module),
        ):
            stack.enter_context(held)
        for path in loaded.inference_paths:
            stack.enter_context(path.around_generation(module))
        known = not encoder_decoder and own.keys() <= PROCESSORS.keys()
        decoders = (path.decoder(module) for path in loaded.inference_paths if known)
        if (opened := next((decoder for decoder in decoders if decoder is not None), None)) is None:
            stack.enter_context(head_by_rows(module))
            return _by_transformers(loaded, prompts, numbers, sampler, options, stop)
        report = None if (report_token := _STREAM.get()) is None else lambda _, token: report_token(token)
        decoder = stack.enter_context(opened)
        longest, stops = options.max_new_tokens, frozenset(stop)
        return Slots(decoder, sampler, prompts, numbers, longest, stops, SLOTS, report).answers()


@contextmanager
def _without_own_settings(module: Any) -> Iterator[None]:
    """Have a model generate without settings of its own."""
    from transformers import GenerationConfig

    before = module.generation_config
    ids = {name: getattr(before, name, None) for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id")}
    module.generation_config = GenerationConfig(**ids)
    try:
        yield
    finally:
        module.generation_config = before


def _require_room(loaded: LoadedModel, longest: int, new: int, *, encoder_decoder: bool) -> None:
    """Raise DataError where a prompt of `longest` tokens and so many new ones are more than the model reads."""
    needed = max(longest, new) if encoder_decoder else longest + new
    if loaded.max_length is None or needed <= loaded.max_length:
        return
    either = "or" if encoder_decoder else "and"
    count = f"{longest} tokens" if longest < 2 * loaded.max_length else f"{longest} or more tokens"  # as it was cut
    raise DataError(
        f"a prompt of {count} {either} max_new_tokens {new} exceed the {loaded.max_length} tokens that this model "
        "reads. Shorten the prompt or lower max_new_tokens."
    )


def _by_transformers(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    samples: Sequence[int],
    sampler: Sampler,
    options: GenerationOptions,
    stop: Sequence[int],
) -> list[Answer]:
    """Answer prompts by the model's `generate`, padded: a decoder's on the left, an encoder-decoder's on the right."""
    from transformers import GenerationConfig

    from ftengine.model.token_loss import is_encoder_decoder

    module: Any = loaded.module
    left, filler = not is_encoder_decoder(module), loaded.processor.pad_token_id or 0
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=False,  # the sampler leaves answer token
        eos_token_id=sorted(set(stop)) or None,
        pad_token_id=filler,
    )
    report, answers = _STREAM.get(), list[Answer]()
    for start in range(0, len(prompts), TOGETHER):
        some = prompts[start : start + TOGETHER]
        growing = [sampler.begin(*pair) for pair in zip(some, samples[start : start + TOGETHER], strict=True)]
        ids, mask = pad(some, filler, left=left), attention_mask(some, left=left)
        device = next(module.parameters()).device
        output = module.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=[sampler.processor(growing)],
            streamer=None if report is None else _Streamer(report, stop),
        )
        # An encoder-decoder's output begins with the token that its decoder starts from.
        new = output[:, ids.shape[1] if left else 1 :].tolist()
        answers += [answer.ended(tokens, stop) for answer, tokens in zip(growing, new, strict=True)]
    return answers


def complete(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    stop: Sequence[int],
    samples: Sequence[int] | None = None,
) -> list[str]:
    """Answer prompts as `generate` does; return the answers as text, without special tokens."""
    answers = generate(loaded, prompts, options, stop, samples)
    return [loaded.processor.decode(answer, skip_special_tokens=True) for answer in answers]


def made_to_fit(
    loaded: LoadedModel, prompts: Sequence[list[int]], options: GenerationOptions
) -> tuple[list[list[int]], GenerationOptions]:
    """Shorten prompts and options to the model's limit, so that a long row does not abort an evaluation.

    At most half of the limit is generated; a prompt that leaves less room loses its beginning.
    """
    if loaded.max_length is None:
        return list(prompts), options
    new = max(1, min(options.max_new_tokens, loaded.max_length // 2))
    room = loaded.max_length - new
    return [prompt[-room:] for prompt in prompts], options.model_copy(update={"max_new_tokens": new})
