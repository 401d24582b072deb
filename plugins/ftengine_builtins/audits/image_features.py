"""Audit `image-features`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, number
from ftengine_builtins.audits.counting import split_name
from ftengine_builtins.audits.image_changes import find_change, thumbnail
from ftengine_builtins.audits.split_shift import is_nonrandom_split
from ftengine_builtins.audits.surface import Feature
from ftengine_builtins.audits.surface_features import FEWEST, Gap, compared
from ftengine_builtins.audits.word_scores import choose_rows

SAMPLE, LONGEST = 100, 256
"""Distinct images of a split that are looked at, and pixels of their longer side, to which they are reduced."""
EDGE = 8
"""What part of a side an edge is."""
PARTS = 6
"""Of eight edges and corners, how many differ in the same feature where it is the whole image that differs."""


class ImageFeatures(Audit):
    """Finds images that differ between splits: in size, or in colour, in brightness or contrast of a part.

    Exchanged channels, and turned or inverted images, are named where undoing that makes the splits alike. A mark in a
    corner, a frame or a camera's date that only training images have is learnt instead of what the images show. Looks
    at splits from another source than training.
    """

    name = "image-features"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        held = [split for split in data.splits if split != "train" and is_nonrandom_split(data, split)]
        train, images = _measured(data, "train") if held else ({}, [])
        for split in reversed(held):  # figures are made on the last
            others, held_images = _measured(data, split)
            if min(len(images), len(held_images)) < FEWEST:
                continue
            change = find_change(images, held_images)
            yield from _findings(split, train, others) if change is None else [_of_change(split, change)]


def _of_change(split: str, change: str) -> Finding:
    name = split_name(split)
    brief = (
        f"bring {name} and training images to one form: in one of both {change}; once that is undone, they are alike"
    )
    text = f"{capitalized(brief)}. Look at five images of each to see which is right: how were they read and written?"
    return Finding(kind="splits", level="note", text=text, brief=brief,
                   figures={"split": split, "what": "images", "change": change})  # fmt: skip


def _measured(data: AuditedData, split: str) -> tuple[dict[str, list[float]], list[np.ndarray]]:
    """Return what is measured of distinct images of a split, by name, and thumbnails; nothing without images."""
    chosen = choose_rows(data.distinct[split], np.ones(len(data.distinct[split]), dtype=bool), SAMPLE)
    found, thumbnails = dict[str, list[float]](), list[np.ndarray]()
    for view in data.splits[split].select(sorted(chosen)):
        image = next((of for of in view.inputs if hasattr(of, "convert")), None)
        if image is None:
            return {}, []
        thumbnails.append(thumbnail(image))
        for name, value in measure(image).items():
            found.setdefault(name, []).append(value)
    return found, thumbnails


def measure(image: Any) -> Mapping[str, float]:
    """Return the size of a PIL image and the brightness of its parts."""
    width, height = image.size
    grey = image.convert("L")
    grey.thumbnail((LONGEST, LONGEST))
    pixels = np.asarray(grey, dtype=np.float32) / 255
    high, wide = (max(1, side // EDGE) for side in pixels.shape)
    parts = {  # of equally telling ones the first is named
        "upper edge": pixels[:high], "lower edge": pixels[-high:], "left edge": pixels[:, :wide],
        "right edge": pixels[:, -wide:], "upper left corner": pixels[: 2 * high, : 2 * wide],
        "upper right corner": pixels[: 2 * high, -2 * wide :], "lower left corner": pixels[-2 * high :, : 2 * wide],
        "lower right corner": pixels[-2 * high :, -2 * wide :], "whole image": pixels,
    }  # fmt: skip
    found = {"width": float(width), "height": float(height)}
    for name, part in parts.items():
        found[f"mean brightness of the {name}"] = float(part.mean())
        found[f"brightest point of the {name}"] = float(part.max())
        found[f"darkest point of the {name}"] = float(part.min())
        found[f"contrast of the {name}"] = float(part.std())
    return found | {"sharpness": _sharpness(pixels)}


def _sharpness(pixels: np.ndarray) -> float:
    """Return how much neighbouring pixels of (height, width) differ, as a part of how much any two do."""
    steps = [float(np.abs(np.diff(pixels, axis=axis)).mean()) for axis in (0, 1) if pixels.shape[axis] > 1]
    return sum(steps) / max(1, len(steps)) / max(float(pixels.std()), 1e-3)


def _of_whole(found: Sequence[Gap]) -> Gap:
    """Return the first of the gaps; where most parts differ in the same feature, the first of the whole image."""
    what = found[0].feature.name.partition(" of the ")[0]
    if sum(gap.feature.name.startswith(f"{what} of the ") for gap in found) < PARTS:
        return found[0]
    return next((gap for gap in found if gap.feature.name in (f"{what} of the whole image", "sharpness")), found[0])


def _findings(split: str, train: Mapping[str, list[float]], held: Mapping[str, list[float]]) -> Iterator[Finding]:
    gaps = [compared(Feature(name, None, len), of, held[name], len(train)) for name, of in train.items()]
    found = sorted((gap for gap in gaps if gap is not None), key=lambda gap: -gap.low)
    if not found:
        return
    first, name = _of_whole(found), split_name(split)
    brief = f"look at {name} and training images: the {first.feature.name} is {number(first.train, 2)} in training "
    brief += f"images and {number(first.held, 2)} in {name} images (median)"
    text = f"{capitalized(brief)}. Were images of one file scaled, blurred, turned, framed or taken by another camera? "
    text += "Bring both to one form."
    named = [first, *(gap for gap in found if gap is not first)][:5]
    figures = {"split": split, "what": "images", "features": [
        {"name": gap.feature.name, "training": gap.train, "held_out": gap.held, "low": gap.low} for gap in named
    ]}  # fmt: skip
    yield Finding(kind="splits", level="note", text=text, brief=brief, figures=figures)
