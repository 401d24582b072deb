"""How augmenters are applied: the check that one suits a task, and the random numbers that each draws from."""

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
    """Return the examples that replace a row in an epoch (DataError: the row cannot be read).

    Each augmenter has its own random generator, seeded with the run's seed, the epoch, the row's number, the
    augmenter's name and how many augmenters before it have this name. So adding or removing an augmenter does not
    change what the others draw.
    """
    rows = [row]
    for augmenter, name in _numbered(augmenters):
        before, rows = rows, list[Example]()
        for i, example in enumerate(before):
            variants = augmenter.augment(example, task, random.Random(f"{seed}/{epoch}/{number}/{name}/{i}"))
            changed = list(each(augmenter, "augment", variants, Mapping))
            if epoch == 0:  # looking at every epoch's would take time and show nothing new
                _require_same_label(augmenter, task, example, changed)
            rows += changed
    return rows


def _require_same_label(augmenter: Augmenter, task: Task, row: Example, variants: Sequence[Example]) -> None:
    """Raise PluginError if an augmenter changed the label of a row."""
    for new in variants:
        if new is not row and (other := task.view(new).label) != (label := task.view(row).label):
            raise PluginError(
                f"{named(augmenter)}: augment() changed the label {label!r} of a row to {other!r}. It must change "
                "only the inputs."
            )


def mix(
    batch: Batch, task: Task, augmenters: Sequence[Augmenter], seed: int, epoch: int, numbers: Sequence[int]
) -> Batch:
    """Return a batch after every augmenter that mixes; `numbers` are those of its rows and seed the draws."""
    for augmenter, name in _numbered(augmenters):
        if overrides(augmenter, "mix"):
            members = ",".join(map(str, numbers))
            batch = augmenter.mix(batch, task, random.Random(f"{seed}/{epoch}/{members}/{name}"))
    return batch


def _numbered(augmenters: Sequence[Augmenter]) -> Iterator[tuple[Augmenter, str]]:
    """Yield each augmenter with its name and how many before it have the same name."""
    counts: Counter[str] = Counter()
    for augmenter in augmenters:
        yield augmenter, f"{augmenter.name}/{counts[augmenter.name]}"
        counts[augmenter.name] += 1
