"""Speech for ftengine: tasks on audio, Whisper models of CTranslate2, word error rate, augmenters of waveforms."""

from __future__ import annotations

from ftengine import api, hookimpl
from ftengine_speech.ctranslate2 import CTranslate2Loader
from ftengine_speech.speech_to_text import SpeechToText
from ftengine_speech.word_errors import CharacterErrorRate, WordErrorRate

__all__ = [
    "CTranslate2Loader",
    "CharacterErrorRate",
    "SpeechToText",
    "WordErrorRate",
    "ftengine_evaluators",
    "ftengine_model_loaders",
    "ftengine_tasks",
]


@hookimpl
def ftengine_model_loaders() -> list[type[api.ModelLoader]]:
    return [CTranslate2Loader]


@hookimpl
def ftengine_tasks() -> list[type[api.Task]]:
    return [SpeechToText]


@hookimpl
def ftengine_evaluators() -> list[type[api.Evaluator]]:
    return [CharacterErrorRate, WordErrorRate]
