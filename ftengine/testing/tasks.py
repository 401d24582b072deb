"""Checks of tasks."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ftengine.api import Example, Task
from ftengine.testing.checks import Checks, run_checks


def check_task(
    make: Callable[[], Task],
    processor: Any,
    examples: Sequence[Example],
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check a task on some of its examples.

    Args:
        make: returns a fresh task.
        processor: what its model is read with.
        examples: two rows at least, of JSON values.
        expected_failed_checks: names of checks that fail, with reasons.

    Raises:
        AssertionError: as `check_strategy`.
    """
    run_checks(_task_checks(make, processor, examples), expected_failed_checks)


def _task_checks(make: Callable[[], Task], processor: Any, examples: Sequence[Example]) -> Checks:
    def bound() -> Task:
        task = make()
        task.bind({"train": examples})
        return task

    def encoding_is_pure_and_whole() -> None:
        task, before = bound(), copy.deepcopy(list(examples))
        for row in examples:
            features = task.encode(row, processor)
            missing = {"length", "weight", "truncated"} - set(features)
            assert not missing, f"features lack {sorted(missing)}"
            assert features == task.encode(row, processor), "a second call gives other features"
        assert list(examples) == before, "an example was changed in place"

    def state_is_json_and_restores() -> None:
        task, other = bound(), make()
        state = json.loads(json.dumps(task.state()))
        other.restore(state)
        assert other.state() == task.state(), "state differs after restore"
        assert other.labels == task.labels, "labels differ after restore"

    def batches_hold_every_example() -> None:
        task = bound()
        batch = task.collate([task.encode(row, processor) for row in examples], processor)
        sizes = {key: len(value) for key, value in batch.items() if hasattr(value, "shape")}
        assert set(sizes.values()) == {len(examples)}, f"tensors of {sizes} rows for {len(examples)} examples"

    yield "encoding_is_pure_and_whole", encoding_is_pure_and_whole
    yield "state_is_json_and_restores", state_is_json_and_restores
    yield "batches_hold_every_example", batches_hold_every_example
