"""Checks of augmenters."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence

from ftengine.api import Augmenter, Example, Task
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
    def augmented(seed: int = 0) -> list[list[Example]]:
        augmenter = make()
        augmenter.bind(task)
        return [list(augmenter.augment(row, random.Random(f"{seed}/0/{i}"))) for i, row in enumerate(examples)]

    def same_seed_same_examples() -> None:
        assert augmented() == augmented(), "the same (seed, epoch, row) gives different examples"

    def given_examples_stay() -> None:
        before = copy.deepcopy(list(examples))
        augmented()
        assert list(examples) == before, "an example that was given was changed in place"

    def targets_stay() -> None:
        for row, new in zip(examples, augmented(), strict=True):
            assert all(task.target(one) == task.target(row) for one in new), f"the target of {row} was changed"

    def something_changes() -> None:
        changed = any(new != [row] for seed in range(20) for row, new in zip(examples, augmented(seed), strict=True))
        own_mix = type(make()).mix is not Augmenter.mix
        assert changed or own_mix, "twenty seeds leave every example as it was"

    yield "same_seed_same_examples", same_seed_same_examples
    yield "given_examples_stay", given_examples_stay
    yield "targets_stay", targets_stay
    yield "something_changes", something_changes
