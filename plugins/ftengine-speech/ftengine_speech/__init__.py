"""Speech for ftengine: tasks on audio, Whisper models of CTranslate2, word error rate, augmenters of waveforms."""

from __future__ import annotations

from typing import Any

from ftengine import api, hookimpl
from ftengine_speech.audits import Recordings
from ftengine_speech.augmenters import Gain, Noise, SpecAugment, Speed
from ftengine_speech.classification import AudioClassification
from ftengine_speech.ctc import SpeechCTC
from ftengine_speech.ctranslate2 import CTranslate2Loader
from ftengine_speech.readers import AudioFolderReader, CommonVoiceReader, LJSpeechReader, NemoReader
from ftengine_speech.rooms import Room
from ftengine_speech.rules import Transcripts
from ftengine_speech.speech_to_text import SpeechToText
from ftengine_speech.word_errors import CharacterErrorRate, WordErrorRate

__all__ = [
    "AudioClassification",
    "AudioFolderReader",
    "CTranslate2Loader",
    "CharacterErrorRate",
    "CommonVoiceReader",
    "Gain",
    "LJSpeechReader",
    "NemoReader",
    "Noise",
    "Recordings",
    "Room",
    "SpecAugment",
    "SpeechCTC",
    "SpeechToText",
    "Speed",
    "Transcripts",
    "WordErrorRate",
    "ftengine_audits",
    "ftengine_augmenters",
    "ftengine_evaluators",
    "ftengine_model_loaders",
    "ftengine_readers",
    "ftengine_rules",
    "ftengine_tasks",
]


@hookimpl
def ftengine_model_loaders() -> list[type[api.ModelLoader]]:
    return [CTranslate2Loader]


@hookimpl
def ftengine_readers() -> list[type[api.Reader]]:
    return [AudioFolderReader, CommonVoiceReader, LJSpeechReader, NemoReader]


@hookimpl
def ftengine_tasks() -> list[type[api.Task]]:
    tasks: list[Any] = [AudioClassification, SpeechCTC, SpeechToText]
    return tasks


@hookimpl
def ftengine_augmenters() -> list[type[api.Augmenter]]:
    return [Gain, Noise, Room, SpecAugment, Speed]


@hookimpl
def ftengine_evaluators() -> list[type[api.Evaluator]]:
    return [CharacterErrorRate, WordErrorRate]


@hookimpl
def ftengine_audits() -> list[type[api.Audit]]:
    return [Recordings]


@hookimpl
def ftengine_rules() -> list[type[api.Rule]]:
    return [Transcripts]
