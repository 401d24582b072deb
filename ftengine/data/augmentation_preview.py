"""A preview of what augmenters do to a few training examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import filterfalse
from typing import Any

import numpy as np

from ftengine.api import Augmenter, Example, Task, overrides
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import DataError, PluginError
from ftengine.plugins.attribution import named
from ftengine.text import counted

SAMPLED = 30
"""How many examples are augmented to find some that change: an augmenter may leave most unchanged."""


def before_and_after(split: EncodedSplit, count: int = 3, batch_size: int | None = None) -> list[dict[str, Any]]:
    """Return a few examples of a split before and after its augmenters, in the first epoch.

    Args:
        count: most examples shown.
        batch_size: `train.batch_size`; at most so many examples are mixed.

    Returns:
        Up to `count` mappings, one for each changed example: "place", and the inputs "before" and "after". These are
        lists of texts (audio is described by `str`) or, for images, {width, height} with "difference", the mean
        absolute difference of the pixels (0 to 255, after resizing to the former size). If batches are mixed, one more
        mapping has the labels of a batch. All values are JSON.
    """
    pairs = []
    for row in sample_rows(split) if not all(map(_mixes, split.augmenters)) else ():
        changed = split.augmented(row, 0)
        entry = _compared(split.task, split.rows[row], changed[0]) if changed else None
        if entry is not None:
            pairs.append({"place": split.rows.where(row), **entry})
        if len(pairs) == count:
            break
    return pairs + _mixed(split, count if batch_size is None else min(count, batch_size))


def without_effect(split: EncodedSplit) -> list[str]:
    """Return the names of augmenters that, applied alone, change nothing that the model reads in `SAMPLED` examples.

    Augmenters that mix batches are not tried. Upper case, for example, changes nothing for a tokenizer that lowers all
    letters (PluginError: the task cannot read any row that an augmenter returns).
    """
    idle = []
    for augmenter in filterfalse(_mixes, split.augmenters):
        single = replace(split, augmenters=(augmenter,))
        if not any(_reads_otherwise(single, row) for row in sample_rows(split)):
            _require_read(single, augmenter)
            idle.append(augmenter.name)
    return idle


def _reads_otherwise(split: EncodedSplit, row: int) -> bool:
    """Return whether the augmented row gives the model another input."""
    changed = list(split.changed(row, 0))
    if len(changed) != 1:
        return bool(changed)
    [(after, features)] = changed
    if _compared(split.task, split.rows[row], after) is None:
        return False
    # Features of images and audio are tensors; other pixels and samples are read as such.
    return split.task.modality != "text" or features != split.features(row)


def _require_read(split: EncodedSplit, augmenter: Augmenter) -> None:
    """Raise PluginError if the task can read none of the rows that an augmenter returns."""
    rows, reason = sample_rows(split), ""
    for number, changed in ((row, variant) for row in rows for variant in split.augmented(row, 0)):
        try:
            split.encode(changed, number)
            return
        except DataError as error:
            reason = reason or str(error).rstrip(".")
    raise PluginError(
        f"{named(augmenter)}: task {split.task.name!r} can read none of the rows that augment() returned for "
        f"{counted(len(rows), 'training example')}: {reason or 'it returned no row'}. Return rows with the columns "
        "of the row that it gets."
    )


def idle_augmenters(split: EncodedSplit) -> list[str]:
    """Return a sentence on each augmenter that `without_effect` names."""
    return [
        f"augmenter {name!r} changes nothing that the model reads in the sampled training examples of the first epoch."
        for name in without_effect(split)
    ] + [
        f"augmenter {name!r} makes the same change to every training example in every epoch, so the model is never "
        "trained on one as it is: lower its probability."
        for name in always_the_same(split)
    ]


def always_the_same(split: EncodedSplit) -> list[str]:
    """Return the names of augmenters that change all of `SAMPLED` examples in the same way in the first two epochs."""
    return [
        augmenter.name
        for augmenter in filterfalse(_mixes, split.augmenters)
        if all(_changes_alike(replace(split, augmenters=(augmenter,)), row) for row in sample_rows(split))
    ]


def _changes_alike(split: EncodedSplit, row: int) -> bool:
    """Return whether a row is changed in the same way in two epochs."""
    first, second = (list(split.augmented(row, epoch)) for epoch in (0, 1))
    if not len(first) == len(second) == 1 or _compared(split.task, split.rows[row], first[0]) is None:
        return False
    return _compared(split.task, first[0], second[0]) is None


def sample_rows(split: EncodedSplit) -> list[int]:
    """Return rows from the whole split, ordered so that the first ones lie far apart."""
    places = np.unique(np.linspace(0, len(split) - 1, min(SAMPLED, len(split))).round().astype(int))
    return [int(split.index[i]) for start in range(3) for i in places[start::3]]


def _mixes(augmenter: Augmenter) -> bool:
    return overrides(augmenter, "mix")


def _compared(task: Task, before: Example, after: Example) -> dict[str, Any] | None:
    """Return the differences between an example and its changed form; None if there are none."""
    old, new = (list(task.view(row).inputs) or [str(dict(row))] for row in (before, after))
    if task.modality == "image":
        return _compared_images(old, new)
    return None if old == new else {"before": [*map(str, old)], "after": [*map(str, new)]}


def _compared_images(before: Sequence[Any], after: Sequence[Any]) -> dict[str, Any] | None:
    distances = [
        np.abs(np.asarray(old, dtype=np.float64) - np.asarray(new.resize(old.size), dtype=np.float64)).mean()
        for old, new in zip(before, after, strict=True)
    ]
    sizes = [[{"width": image.width, "height": image.height} for image in images] for images in (before, after)]
    if sizes[0] == sizes[1] and not any(distances):
        return None
    return {"before": sizes[0], "after": sizes[1], "difference": round(float(np.mean(distances)), 2)}


def _mixed(split: EncodedSplit, count: int) -> list[dict[str, Any]]:
    mixers = tuple(filter(_mixes, split.augmenters))
    if not mixers:
        return []
    members = np.asarray([int(np.flatnonzero(split.index == row)[0]) for row in sample_rows(split)[:count]])
    batches = {"before": split.batch(members), "after": replace(split, augmenters=mixers).batch(members, 0)}
    labels = {side: {"labels": np.round(batch["labels"].tolist(), 3).tolist()} for side, batch in batches.items()}
    return [{"place": f"labels of a batch of {len(members)}", **labels}]
