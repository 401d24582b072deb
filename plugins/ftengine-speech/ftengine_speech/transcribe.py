"""Transcripts by a model's own `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from ftengine.api import LoadedModel
from ftengine.errors import DataError
from ftengine_speech.audio import Audio
from ftengine_speech.rows import extractor_of, features_of, tokenizer_of
from ftengine_speech.states import EncoderStates, recordings
from ftengine_speech.whisper import is_multilingual, is_whisper


def transcribe(
    loaded: LoadedModel,
    audios: Sequence[Audio],
    max_new_tokens: int,
    told: Mapping[str, Any],
    states: EncoderStates | None = None,
) -> list[str]:
    """Return the likeliest transcript of each recording, token by token.

    Args:
        audios: recordings at the model's rate.
        max_new_tokens: longest transcript of a window in tokens.
        told: `language` of each recording and `task`, of a multilingual Whisper; else empty.
        states: states of recordings that the encoder need not hear again.
    """
    import torch

    from ftengine.model import evaluating, quiet_transformers

    module: Any = loaded.module
    tokenizer = tokenizer_of(loaded.processor)
    window = getattr(extractor_of(loaded.processor), "chunk_length", None)
    long = [audio for audio in audios if window is not None and audio.seconds > window]
    if long and len(audios) > 1:  # windows of one recording follow from one another
        return [
            text
            for i, audio in enumerate(audios)
            for text in transcribe(loaded, [audio], max_new_tokens, _of_row(told, i), states)
        ]
    with ExitStack() as stack:
        for held in (torch.no_grad(), evaluating(module), quiet_transformers()):
            stack.enter_context(held)
        for path in loaded.inference_paths:
            stack.enter_context(path.around_generation(module))
        inputs = _long_inputs(loaded, long[0]) if long else _inputs(loaded, audios, states)
        output = module.generate(**inputs, **told, **_settings(module, tokenizer, max_new_tokens, timed=bool(long)))
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in output.tolist()]


def _settings(module: Any, tokenizer: Any, max_new_tokens: int, *, timed: bool) -> dict[str, Any]:
    """Return arguments of `generate`: greedy, without timestamps but for long recordings."""
    settings: dict[str, Any] = {"do_sample": False, "num_beams": 1}
    if not is_whisper(tokenizer):
        return {**settings, "max_new_tokens": max_new_tokens}
    room = module.config.max_target_positions - (4 if is_multilingual(tokenizer) else 2)
    if room < 1:
        raise DataError(f"the model writes at most {module.config.max_target_positions} tokens, its prompt included.")
    timestamps = {"return_timestamps": True} if timed else {"return_timestamps": False}
    return {**settings, **timestamps, "max_new_tokens": min(max_new_tokens, room)}


def _inputs(loaded: LoadedModel, audios: Sequence[Audio], states: EncoderStates | None) -> dict[str, Any]:
    import torch

    module: Any = loaded.module
    if states is None or not states.kept:
        return _moved(features_of(loaded.processor, [audio.samples for audio in audios]), module)
    batch = recordings([torch.from_numpy(audio.samples) for audio in audios])
    batch = {key: value.to(next(module.parameters()).device) for key, value in batch.items()}
    return _moved(states.inputs(module, batch, loaded.processor), module)


def _long_inputs(loaded: LoadedModel, audio: Audio) -> dict[str, Any]:
    extractor = extractor_of(loaded.processor)
    options = {"truncation": False, "padding": "longest", "return_attention_mask": True, "return_tensors": "pt"}
    inputs = extractor([audio.samples], sampling_rate=extractor.sampling_rate, **options)
    return _moved(dict(inputs), loaded.module)


def _moved(inputs: dict[str, Any], module: Any) -> dict[str, Any]:
    """Return inputs on the model's device and in its type; states of the encoder are as it made them."""
    parameter = next(module.parameters())
    return {
        key: value
        if key == "encoder_outputs"
        else value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
    }


def _of_row(told: Mapping[str, Any], row: int) -> dict[str, Any]:
    return {key: [value[row]] if key == "language" else value for key, value in told.items()}
