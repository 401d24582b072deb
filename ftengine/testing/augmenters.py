"""Checks of augmenters."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence

from ftengine.api import Augmenter, ChecksOptions, Example, MixesBatches, Task
from ftengine.testing.checks import methods, run_checks


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
    run_checks(methods(_AugmenterChecks(make, task, examples)), expected_failed_checks)


class _AugmenterChecks:
    def __init__(self, make: Callable[[], Augmenter], task: Task, examples: Sequence[Example]) -> None:
        self._make, self._task, self._examples = make, task, examples

    def same_seed_same_examples(self) -> None:
        assert self._augmented() == self._augmented(), "the same (seed, epoch, row) gives different examples"

    def no_state_between_examples(self) -> None:
        forwards, backwards = self._augmented(), self._augmented(backwards=True)
        assert forwards == backwards, "what becomes of an example depends on those before it"

    def given_examples_stay(self) -> None:
        for row in self._examples:
            given = copy.deepcopy(row)
            list(self._made().augment(given, self._task, random.Random(0)))
            assert given == row, "an example that was given was changed in place"

    def labels_stay(self) -> None:
        for row, new in zip(self._examples, self._augmented(), strict=True):
            label = self._task.view(row).label
            changed = label is not None and any(self._task.view(one).label != label for one in new)
            assert not changed, f"the label of {row} was changed"

    def new_examples_can_be_read(self) -> None:
        for row, new in zip(self._examples, self._augmented(), strict=True):
            texts = all(isinstance(value, str) for value in self._task.view(row).inputs)
            for one in new:
                inputs = list(self._task.view(one).inputs)
                sound = all(isinstance(value, str) if texts else value is not None for value in inputs or [None])
                assert sound, f"{row} became {one}, whose inputs are {inputs}"

    def something_changes(self) -> None:
        if not isinstance(self._make(), MixesBatches):
            unchanged = [[row] for row in self._examples]
            changes = any(self._augmented(seed) != unchanged for seed in range(20))
            assert changes, "twenty seeds leave every example as it was"

    def _made(self) -> Augmenter:
        augmenter = self._make()
        if isinstance(augmenter, ChecksOptions):
            augmenter.check_options()
        return augmenter

    def _augmented(self, seed: int = 0, backwards: bool = False) -> list[list[Example]]:
        augmenter, order = self._made(), list(enumerate(copy.deepcopy(list(self._examples))))
        found = {
            i: list(augmenter.augment(row, self._task, random.Random(f"{seed}/0/{i}")))
            for i, row in (reversed(order) if backwards else order)
        }
        return [found[i] for i, _ in order]
