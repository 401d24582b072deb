"""Rows that tests train on, and the files that hold them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDS = {"film": "actor scene music", "money": "profit shares bank", "sport": "goal match team"}
"""Three classes and the words that tell them apart."""
NAMES: dict[str | None, tuple[str, ...]] = {
    "PER": ("anna", "bob"),
    "LOC": ("paris", "berlin"),
    None: ("the", "in", "likes", "and"),
}
"""Words that are names of people, of places, or neither."""


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines and return the file's path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sentences(
    count: int, rng: random.Random, words: Mapping[str, str] = WORDS, length: int = 6
) -> Iterator[dict[str, Any]]:
    """Yield distinct sentences, the classes taking turns."""
    labels = sorted(words)
    for i in range(count):
        label = labels[i % len(labels)]
        chosen = [rng.choice(words[label].split()) for _ in range(length)]
        yield {"text": " ".join([*chosen, str(i)]), "label": label}


def tagged(count: int) -> Iterator[dict[str, Any]]:
    """Yield sentences whose words are tagged as names of people, of places, or neither."""
    rng = random.Random(0)
    for _ in range(count):
        kinds = [rng.choice([*NAMES]) for _ in range(rng.randrange(3, 7))]
        tags = [f"B-{kind}" if kind else "O" for kind in kinds]
        yield {"tokens": [rng.choice(NAMES[kind]) for kind in kinds], "tags": tags}


def photos(folder: Path, count: int = 8, side: int = 24) -> Path:
    """Write dark and light noise, so many images a subfolder each; return the folder."""
    rng = np.random.default_rng(0)
    for label, level in (("dark", 50), ("light", 200)):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(-40, 40, (side, side, 3)) + level
            Image.fromarray(noise.astype("uint8")).save(folder / label / f"{i}.png")
    return folder
