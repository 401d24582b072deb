"""Augmenters: they make further training examples from one, without changing its answer."""

from ftengine_builtins.augmenters.back_translation import BackTranslation
from ftengine_builtins.augmenters.characters import Keyboard, Ocr
from ftengine_builtins.augmenters.images import Color, Crop, Flip, RandAugment, TrivialAugment
from ftengine_builtins.augmenters.mask_spans import MaskSpans
from ftengine_builtins.augmenters.mixing import CutMix, Mixup
from ftengine_builtins.augmenters.synonyms import Synonyms
from ftengine_builtins.augmenters.words import Case, DeleteWords, Punctuation, SwapWords

__all__ = [
    "BackTranslation",
    "Case",
    "Color",
    "Crop",
    "CutMix",
    "DeleteWords",
    "Flip",
    "Keyboard",
    "MaskSpans",
    "Mixup",
    "Ocr",
    "Punctuation",
    "RandAugment",
    "SwapWords",
    "Synonyms",
    "TrivialAugment",
]
