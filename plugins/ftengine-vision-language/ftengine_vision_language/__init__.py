"""Pictures in conversations for ftengine: vision-language models tuned on images and text."""

from __future__ import annotations

from ftengine import api, hookimpl
from ftengine_vision_language.evaluator import VQA
from ftengine_vision_language.looking import BlankPicture, Looking, ScramblePicture
from ftengine_vision_language.preference import ImagePreference
from ftengine_vision_language.task import ImageTextToText

__all__ = [
    "VQA",
    "BlankPicture",
    "ImagePreference",
    "ImageTextToText",
    "Looking",
    "ScramblePicture",
    "ftengine_augmenters",
    "ftengine_evaluators",
    "ftengine_rules",
    "ftengine_tasks",
]


@hookimpl
def ftengine_tasks() -> list[type[api.Task]]:
    return [ImagePreference, ImageTextToText]


@hookimpl
def ftengine_evaluators() -> list[type[api.Evaluator]]:
    return [VQA]


@hookimpl
def ftengine_augmenters() -> list[type[api.Augmenter]]:
    return [BlankPicture, ScramblePicture]


@hookimpl
def ftengine_rules() -> list[type[api.Rule]]:
    return [Looking]
