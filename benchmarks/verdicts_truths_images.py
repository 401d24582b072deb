"""Truths about pictures: scikit-learn's digits, whose labels are swapped, shifted or wrong, by a small ResNet.

Read with those of verdicts_truths.py by benchmarks/verdicts.py. No audit reads pictures: what is found is found by what
the tuned model answers.
"""

from __future__ import annotations

import csv
import random
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from verdicts_truths import (
    NO_INFORMATION,
    OF_USE,
    ONLY_BETTER,
    UNTRAINED,
    Rows,
    Truth,
    by,
    either,
    in_all,
    kind,
    noisy,
    shuffle_labels,
)
from verdicts_truths_splits import OF_SPLITS, Spoil, coded_alone, in_test, swap_classes
from verdicts_truths_tasks import shifted

SIDE = 32
"""Of the pictures that the ResNet sees, in pixels."""


@cache
def resnet() -> str:
    """Return the folder of a small ResNet with fresh weights, and of the processor of its pictures."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    folder = tempfile.mkdtemp(prefix="resnet-")
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


@cache
def pictures() -> Rows:
    """Write the digits as PNG files, once a process, and return a row each."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder, digits, rows = Path(tempfile.mkdtemp(prefix="digits-")), load_digits(), []
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = folder / f"{number:04}.png"
        Image.fromarray((pixels * (255 / 16)).astype("uint8")).save(file)
        rows.append({"image": str(file), "label": f"digit {digit}"})
    return rows


def inverted(draw: random.Random, rows: Rows) -> None:
    """Black is white, as on another device."""
    from PIL import Image, ImageOps

    folder = Path(tempfile.mkdtemp(prefix="inverted-"))
    for row in rows:
        file = folder / Path(row["image"]).name
        ImageOps.invert(Image.open(row["image"])).save(file)
        row["image"] = str(file)


def digits(
    folder: Path, seed: int, *, spoil: Spoil | None = None, train: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write lists of digits, spoilt, and return the recipe."""
    draw = random.Random(f"digits {seed}")
    rows, start = [dict(row) for row in draw.sample(pictures(), 800)], 0
    splits = dict[str, Rows]()
    for name, count in (("train", 500), ("validation", 100), ("test", 200)):
        splits[name], start = rows[start : start + count], start + count
    if spoil is not None:
        spoil(draw, splits)
    files = {name: str(folder / f"{name}.csv") for name in splits}
    for name, file in files.items():
        with Path(file).open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([("image", "label"), *((row["image"], row["label"]) for row in splits[name])])
    return {
        "model": {"source": resnet()},
        "task": {"name": "image-classification", "outside_files": True},
        "data": files,
        "strategy": {"name": "full", "batch_norm": "train"},
        "train": {"epochs": 8, "batch_size": 16, "learning_rate": 2e-3, **(train or {})},
        "evaluation": {"batch_size": 64, "resamples": 200},
        "seed": seed,
    }  # fmt: skip


def of(name: str, named: Callable[..., bool], *, seeds: int = 3, usable: bool = True, fits: tuple[str, ...] = OF_SPLITS,
       **options: Any) -> Truth:  # fmt: skip
    return Truth(f"{name}: digits", lambda folder, seed: digits(folder, seed, **options), named, fits, usable, seeds)


SWAPPED = by("swapped-classes", "swapped")
TRUTHS: list[Truth] = [
    of("sound", ONLY_BETTER, seeds=6, fits=()),
    of("two classes swapped in test", SWAPPED, spoil=in_test(swap_classes)),
    of("labels of the next row in test", by("validation-and-test"), spoil=shifted("label", "test"), usable=False),
    of(
        "inverted in test",
        either(by("validation-and-test"), by("image-features")),
        spoil=in_test(inverted),
        usable=False,
    ),
    of("codes given per file", SWAPPED, spoil=coded_alone),
    of("20% label noise", kind("labels"), spoil=noisy(0.2)),
    of("random labels", NO_INFORMATION, spoil=in_all(shuffle_labels), fits=(*OF_USE, "over-fitting"), usable=False),
    of("too few steps", UNTRAINED, train={"max_steps": 6, "epochs": 1}, fits=OF_USE, usable=False),
]
