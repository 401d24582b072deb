"""Checks of augmenters."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ftengine.api import Augmenter, Batch, Example, Task, overrides
from ftengine.testing.checks import Checks, not_suited, run_checks, skip
from ftengine.testing.values import equal, explained


def check_augmenter(
    make: Callable[[], Augmenter],
    task: Task,
    examples: Sequence[Example],
    processor: Any = None,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check an augmenter on some examples of a task.

    Args:
        make: returns a fresh augmenter.
        task: a task with bound labels.
        examples: rows of JSON values for the task.
        processor: tokenizer or image processor; needed if the augmenter reads it or mixes batches.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    run_checks(AugmenterChecks(make, task, examples, processor), expected_failed_checks)


@dataclass
class AugmenterChecks(Checks):
    """Checks of an augmenter on some examples of one task."""

    make: Callable[[], Augmenter]
    task: Task
    examples: Sequence[Example]
    processor: Any

    def same_seed_same_examples(self) -> None:
        assert self._augmented() == self._usual, "the same (seed, epoch, row) gives different examples"

    def no_state_between_examples(self) -> None:
        assert self._usual == self._augmented(backwards=True), "an example's variants depend on earlier examples"
        augmenter = self._fresh()
        first, second = (self._augmented(augmenter=augmenter) for _ in "ab")
        assert first == second, (
            "the same examples have other variants the second time. They may only depend on the options, the "
            "example and the random generator that it gets"
        )
        assert second == self._usual, "a used augmenter returns other examples than a fresh one"

    def it_can_be_pickled(self) -> None:
        fresh, used = self._fresh(), self._fresh()
        self._augmented(augmenter=used)
        advice = "do not store files, locks or functions in attributes, or create them when they are needed"
        with explained("it cannot be sent to another process", advice):
            state, _ = pickle.loads(pickle.dumps(vars(fresh))), pickle.dumps(vars(used))
        other = self._fresh()
        vars(other).update(state)
        assert self._augmented(augmenter=other) == self._usual, "it returns other examples after pickling"

    def given_examples_stay(self) -> None:
        for row in self.examples:
            copied = copy.deepcopy(row)
            list(self._fresh().augment(copied, self.task, random.Random(0)))
            assert copied == row, "augment() changes its example in place: copy it first"

    def labels_stay(self) -> None:
        for seed in range(3):
            for row, new in zip(self.examples, self._augmented(seed), strict=True):
                target = self.task.view(row).target
                changed = [example for example in new if self.task.view(example).target != target]
                assert not changed, (
                    f"the target of {row} was {target!r} and became "
                    f"{self.task.view(changed[0]).target!r}: an augmenter may only change inputs (Task.with_inputs)"
                )

    def new_examples_can_be_read(self) -> None:
        for row, new in zip(self.examples, self._usual, strict=True):
            texts = all(isinstance(value, str) for value in self.task.view(row).inputs)
            for example in new:
                inputs = list(self.task.view(example).inputs)
                sound = all(isinstance(value, str) if texts else value is not None for value in inputs or [None])
                assert sound, f"{row} became {example}, whose inputs are {inputs}"

    def new_examples_can_be_encoded(self) -> None:
        if self.processor is None:
            not_suited("there is no processor to encode them with")
        for row, new in zip(self.examples, self._usual, strict=True):
            for example in new:
                with explained(f"{row} became {example}, which cannot be encoded", "change inputs alone"):
                    weight = self.task.encode(example, self.processor).weight
                assert weight, f"{row} became {example}, which has no tokens to train on"

    def something_changes(self) -> None:
        if overrides(self.make(), "mix"):
            skip("it changes batches")
        unchanged = [[row] for row in self.examples]
        changes = any(self._augmented(seed) != unchanged for seed in range(20))
        assert changes, "it changes no example with any of twenty seeds"

    def mixing_is_a_function_of_the_random_numbers(self) -> None:
        assert equal(self._mixed(0), self._mixed(0)), (
            "a batch is mixed differently with the same random numbers: use only the generator that it gets"
        )
        plain = self._batch()
        assert not all(equal(self._mixed(seed), plain) for seed in range(20)), (
            "it changes no batch with any of twenty seeds"
        )

    def mixing_leaves_the_batch_and_its_shapes(self) -> None:
        augmenter, batch = self._mixing(), self._batch()
        mixed = augmenter.mix(batch, self.task, random.Random(0))
        assert equal(batch, self._batch()), "mix() changes its batch in place: copy it first"
        sizes = {key: len(value) for key, value in mixed.items() if isinstance(value, torch.Tensor) and value.ndim}
        count = len(self.examples)
        assert set(sizes.values()) == {count}, f"{count} examples became tensors of {sizes} rows"

    def _fresh(self) -> Augmenter:
        augmenter = self.make()
        if overrides(augmenter, "check_options"):
            augmenter.check_options()
        if overrides(augmenter, "set_processor") and self.processor is not None:
            augmenter.set_processor(self.processor)
        return augmenter

    @cached_property
    def _usual(self) -> list[list[Example]]:
        """The variants of all examples by a fresh augmenter."""
        return self._augmented()

    def _augmented(
        self, seed: int = 0, backwards: bool = False, augmenter: Augmenter | None = None
    ) -> list[list[Example]]:
        order = list(enumerate(copy.deepcopy(list(self.examples))))
        augmenter = augmenter or self._fresh()
        augmented = {
            i: list(augmenter.augment(row, self.task, random.Random(f"{seed}/0/{i}")))
            for i, row in (reversed(order) if backwards else order)
        }
        return [augmented[i] for i, _ in order]

    def _mixing(self) -> Any:
        augmenter = self._fresh()
        if not overrides(augmenter, "mix"):
            skip("it mixes no batches")
        if self.processor is None:
            not_suited("there is no processor to make a batch with")
        return augmenter

    def _batch(self) -> Batch:
        features = [self.task.encode(row, self.processor) for row in self.examples]
        return self.task.collate(features, self.processor)

    def _mixed(self, seed: int) -> Batch:
        return self._mixing().mix(self._batch(), self.task, random.Random(seed))
