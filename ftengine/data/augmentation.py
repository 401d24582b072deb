"""How augmenters are applied: which suit a task, and from which random numbers each draws."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ftengine.api import Augmenter, Batch, Example, Task, overrides
from ftengine.errors import PluginError, RecipeError
from ftengine.plugins.attribution import each, named


def require_suitable(augmenter: Augmenter, task: Task) -> None:
    """Refuse an augmenter that does not suit a task and its labels (RecipeError), or its options (InputError)."""
    if augmenter.modality is not None and augmenter.modality != task.modality:
        raise RecipeError(
            f"augmenter {augmenter.name!r} changes {augmenter.modality}s, and examples of task {task.name!r} are "
            f"{task.modality}s. Take it out of the recipe."
        )
    if overrides(augmenter, "mix"):
        augmenter.check_mix(task)
    augmenter.check_options()


def augment(
    row: Example, task: Task, augmenters: Sequence[Augmenter], seed: int, epoch: int, number: int
) -> list[Example]:
    """Return what takes the place of a row in an epoch (DataError: the row cannot be read).

    Each augmenter draws from random numbers of its own, a function of (seed, epoch, number of the row), its name and
    how often that name came before: leaving one out, or putting another in front, changes no draw of the others.
    """
    rows = [row]
    for augmenter, name in _numbered(augmenters):
        before, rows = rows, list[Example]()
        for i, one in enumerate(before):
            variants = augmenter.augment(one, task, random.Random(f"{seed}/{epoch}/{number}/{name}/{i}"))
            made = list(each(augmenter, "augment", variants, Mapping))
            if epoch == 0:  # looking at every epoch's would take time and tell no more
                _require_same_label(augmenter, task, one, made)
            rows += made
    return rows


def _require_same_label(augmenter: Augmenter, task: Task, row: Example, made: Sequence[Example]) -> None:
    """Refuse rows with another label than the one that they were made of (PluginError)."""
    for new in made:
        if new is not row and (other := task.view(new).label) != (label := task.view(row).label):
            raise PluginError(
                f"{named(augmenter)}: augment() made a row with the label {other!r} of one with {label!r}. It must "
                "change inputs alone."
            )


def mix(
    batch: Batch, task: Task, augmenters: Sequence[Augmenter], seed: int, epoch: int, numbers: Sequence[int]
) -> Batch:
    """Return a batch mixed by those augmenters that mix; `numbers` are its rows', with which their draws change."""
    for augmenter, name in _numbered(augmenters):
        if overrides(augmenter, "mix"):
            members = ",".join(map(str, numbers))
            batch = augmenter.mix(batch, task, random.Random(f"{seed}/{epoch}/{members}/{name}"))
    return batch


def _numbered(augmenters: Sequence[Augmenter]) -> Iterator[tuple[Augmenter, str]]:
    """Yield augmenters, each with its name and how often that came before."""
    seen: Counter[str] = Counter()
    for augmenter in augmenters:
        yield augmenter, f"{augmenter.name}/{seen[augmenter.name]}"
        seen[augmenter.name] += 1
