"""What was done to all images of one split, such as exchanged channels: undone, they are like those of the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

SIDE = 8
"""Pixels of a side to which images are reduced."""
SHUFFLES = 499
"""Random divisions of all images. The mean images of two splits differ by more than in any of them, and once a change
is undone by less than in one of them."""
NEARER = 4.0
"""How many times nearer, by squared distance, they are then at least."""

CHANGES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "red and blue are exchanged": lambda images: images[..., [2, 1, 0]],
    "red and green are exchanged": lambda images: images[..., [1, 0, 2]],
    "green and blue are exchanged": lambda images: images[..., [0, 2, 1]],
    "colours are in the order green, blue, red": lambda images: images[..., [2, 0, 1]],
    "colours are in the order blue, red, green": lambda images: images[..., [1, 2, 0]],
    "light and dark are exchanged": lambda images: 1 - images,
    "images are upside down": lambda images: images[:, ::-1],
    "images are mirrored": lambda images: images[:, :, ::-1],
    "images are turned by 180 degrees": lambda images: images[:, ::-1, ::-1],
    "images are turned by 90 degrees": lambda images: np.rot90(images, 1, (1, 2)),
    "images are turned by 270 degrees": lambda images: np.rot90(images, 3, (1, 2)),
    "rows and columns are exchanged": lambda images: images.swapaxes(1, 2),
}
"""Changes in words, and what undoes each: of (n, SIDE, SIDE, 3) images from 0 to 1."""


def thumbnail(image: Any) -> np.ndarray:
    """Return a PIL image as (SIDE, SIDE, 3) from 0 to 1."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE)), dtype=np.float32) / 255


def find_change(train: Sequence[np.ndarray], held: Sequence[np.ndarray]) -> str | None:
    """Return what was done to the held-out images, or to the training images, in words; None if nothing is found."""
    ours, theirs = np.stack(train), np.stack(held)
    apart = _distance(ours, theirs)
    if apart <= _of_chance(ours, theirs).max():
        return None
    undone = {name: undo(theirs) for name, undo in CHANGES.items()}
    name = min(undone, key=lambda name: _distance(ours, undone[name]))
    left = _distance(ours, undone[name])
    return name if left * NEARER <= apart and left < _of_chance(ours, undone[name]).max() else None


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(((ours.mean(0) - theirs.mean(0)) ** 2).sum())


def _of_chance(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return (SHUFFLES,) squared distances between the mean images of random divisions of all images."""
    images, rng = np.concatenate([ours, theirs]), np.random.default_rng(0)
    first = np.repeat([1 / len(ours), -1 / len(theirs)], [len(ours), len(theirs)])
    signs = np.stack([rng.permutation(first) for _ in range(SHUFFLES)])
    return np.asarray(((signs @ images.reshape(len(images), -1)) ** 2).sum(1))
