"""Checks of augmenters."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence

from ftengine.api import Augmenter, ChecksOptions, Example, MixesBatches, Task
from ftengine.testing.checks import Checks, run_checks


def check_augmenter(
    make: Callable[[], Augmenter],
    task: Task,
    examples: Sequence[Example],
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check an augmenter on some examples of a task.

    Args:
        make: returns a fresh augmenter.
        task: its labels are bound.
        examples: rows such as the task takes, of JSON values.
        expected_failed_checks: names of checks that fail, with reasons.

    Raises:
        AssertionError: as `check_strategy`.
    """
    run_checks(_augmenter_checks(make, task, examples), expected_failed_checks)


def _augmenter_checks(make: Callable[[], Augmenter], task: Task, examples: Sequence[Example]) -> Checks:
    def made() -> Augmenter:
        augmenter = make()
        if isinstance(augmenter, ChecksOptions):
            augmenter.check_options()
        return augmenter

    def augmented(seed: int = 0, backwards: bool = False) -> list[list[Example]]:
        augmenter = made()
        order = list(enumerate(copy.deepcopy(list(examples))))
        found = {
            i: list(augmenter.augment(row, task, random.Random(f"{seed}/0/{i}")))
            for i, row in (reversed(order) if backwards else order)
        }
        return [found[i] for i, _ in order]

    def same_seed_same_examples() -> None:
        assert augmented() == augmented(), "the same (seed, epoch, row) gives different examples"

    def no_state_between_examples() -> None:
        assert augmented() == augmented(backwards=True), "what becomes of an example depends on those before it"

    def given_examples_stay() -> None:
        for row in examples:
            given = copy.deepcopy(row)
            list(made().augment(given, task, random.Random(0)))
            assert given == row, "an example that was given was changed in place"

    def labels_stay() -> None:
        for row, new in zip(examples, augmented(), strict=True):
            label = task.view(row).label
            changed = label is not None and any(task.view(one).label != label for one in new)
            assert not changed, f"the label of {row} was changed"

    def something_changes() -> None:
        mixes = isinstance(make(), MixesBatches)
        changed = any(new != [row] for seed in range(20) for row, new in zip(examples, augmented(seed), strict=True))
        assert changed or mixes, "twenty seeds leave every example as it was"

    yield "same_seed_same_examples", same_seed_same_examples
    yield "no_state_between_examples", no_state_between_examples
    yield "given_examples_stay", given_examples_stay
    yield "labels_stay", labels_stay
    yield "something_changes", something_changes
