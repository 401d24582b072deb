"""Generating answers to prompts, options of generation, and log-probabilities of answers.

Everything here is public. Names are imported when first used, so that reading options does not import torch.
"""

from typing import TYPE_CHECKING

from ftengine import lazy_attributes

if TYPE_CHECKING:
    from ftengine.generation.answers import complete, draw_answers, generate, made_to_fit, streaming
    from ftengine.generation.memory import drawing_bytes
    from ftengine.generation.options import GenerationOptions, sampling
    from ftengine.generation.sampler import Answer
    from ftengine.generation.scores import answer_scores, beside_tokens, log_probabilities, next_log_probabilities
    from ftengine.generation.settings import measured_settings, settings_faults

_HOMES = {
    "ftengine.generation.answers": "complete draw_answers generate made_to_fit streaming",
    "ftengine.generation.memory": "drawing_bytes",
    "ftengine.generation.options": "GenerationOptions sampling",
    "ftengine.generation.sampler": "Answer",
    "ftengine.generation.scores": "answer_scores beside_tokens log_probabilities next_log_probabilities",
    "ftengine.generation.settings": "measured_settings settings_faults",
}

__all__, __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
