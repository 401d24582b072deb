"""Comparing the generation settings of a folder with those of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftengine.generation.options import GenerationOptions

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that are read where tokens are drawn."""
LONGEST = ("max_new_tokens", "max_length")
"""Settings that cut answers."""
NEUTRAL: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "early_stopping": False,
    "remove_invalid_values": False,
    "renormalize_logits": False,
}
"""What transformers takes where a setting is not given."""
OTHERS = ("transformers_version", "cache", "use_cache", "output_", "return_", "_", "compile", "disable_compile")
"""Beginnings of the names of settings that change no answer."""
ENDS = ("eos_token_id", "pad_token_id", "bos_token_id")
"""Settings that are compared for themselves: end tokens, and those of prompts."""


def settings_of(module: Any) -> dict[str, Any]:
    """Return the generation settings of a model that change its answers, without those of sampling."""
    config = getattr(module, "generation_config", None)
    return {} if config is None else _changing({**config.to_dict(), "do_sample": False})


def measured_settings(own: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's own generation settings, overridden by those of an evaluation.

    Args:
        own: of the model, as its generation_config.json has them.
        options: `GenerationOptions` of the evaluation.
    """
    requested = GenerationOptions.read(options)
    settings = {key: value for key, value in own.items() if key not in (*SAMPLING, "do_sample")}
    for key in LONGEST:
        if settings.get(key) is not None and settings[key] < requested.max_new_tokens:
            del settings[key]
    if requested.temperature > 0:
        return {
            **settings,
            "do_sample": True,
            "temperature": requested.temperature,
            "top_p": requested.top_p,
            "top_k": 0,
        }
    return {**settings, "do_sample": False}


def settings_faults(served: Mapping[str, Any], own: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Describe the generation settings of a folder that differ from the evaluation's.

    Args:
        served: of the folder, as its generation_config.json has them.
        own, options: as of `measured_settings`.
    """
    measured = measured_settings(own, options)
    longest = GenerationOptions.read(options).max_new_tokens
    faults = [
        f"{key} is {served[key]}, where {longest} were measured"
        for key in LONGEST
        if served.get(key) is not None and served[key] < longest
    ]
    actual, expected = _changing(served), _changing(measured)
    for key in sorted(actual.keys() | expected.keys()):
        values = [settings.get(key, NEUTRAL.get(key)) for settings in (actual, expected)]
        if values[0] != values[1]:
            faults.append(f"{key} is {values[0]}, measured {values[1]}")
    return faults


def _changing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that change answers."""
    drawn = bool(settings.get("do_sample"))
    return {
        key: value
        for key, value in settings.items()
        if value is not None
        and value != NEUTRAL.get(key)
        and not key.startswith(OTHERS)
        and key not in ENDS
        and key not in LONGEST
        and (drawn or key not in SAMPLING)
    }
