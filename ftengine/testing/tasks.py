"""Checks of tasks."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from ftengine.api import Batch, Criterion, Example, Labels, LoadedModel, Task
from ftengine.testing.checks import Checks, run_checks


def check_task(
    make: Callable[[], Task],
    processor: Any,
    examples: Sequence[Example],
    load: Callable[[Labels | None], LoadedModel] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check a task on some of its examples.

    Args:
        make: returns a fresh task.
        processor: what its model is read with.
        examples: two rows at least, of JSON values.
        load: returns a small model with the task's head for some labels; without it nothing is computed.
        expected_failed_checks: names of checks that fail, with reasons.

    Raises:
        AssertionError: as `check_strategy`.
    """

    def bound() -> Task:
        task = make()
        task.labels = task.bind({"train": examples})
        return task

    checks = _data_checks(make, bound, processor, examples)
    run_checks(chain(checks, _model_checks(bound, load, examples) if load else ()), expected_failed_checks)


def _data_checks(
    make: Callable[[], Task], bound: Callable[[], Task], processor: Any, examples: Sequence[Example]
) -> Checks:
    def encoding_is_pure_and_whole() -> None:
        task, before = bound(), copy.deepcopy(list(examples))
        for row in examples:
            features = task.encode(row, processor)
            missing = {"length", "weight", "truncated"} - set(features)
            assert not missing, f"features lack {sorted(missing)}"
            assert features == task.encode(row, processor), "a second call gives other features"
        assert list(examples) == before, "an example was changed in place"

    def labels_are_all_that_is_learnt() -> None:
        task, other = bound(), make()
        if task.labels is not None:
            stored = json.loads(json.dumps(asdict(task.labels)))
            other.labels = Labels(stored["kind"], tuple(stored["names"]))
        assert other.labels == task.labels, "labels differ after they were JSON"
        for name in ("evaluators", "predicts"):
            assert getattr(other, name) == getattr(task, name), f"{name} differ where the labels are given"
        for row in examples:
            assert other.encode(row, processor) == task.encode(row, processor), "features differ where labels are given"

    def batches_hold_every_example() -> None:
        task = bound()
        batch = task.collate([task.encode(row, processor) for row in examples], processor)
        sizes = {key: len(value) for key, value in batch.items() if hasattr(value, "shape")}
        assert set(sizes.values()) == {len(examples)}, f"tensors of {sizes} rows for {len(examples)} examples"

    def inputs_can_be_put_back() -> None:
        task = bound()
        for row in examples:
            view = task.view(row)
            again = task.view(task.with_inputs(row, list(view.inputs)))
            assert again.target == view.target, "the target changes with the inputs"
            assert len(again.inputs) == len(view.inputs), "the number of inputs changes"

    yield "encoding_is_pure_and_whole", encoding_is_pure_and_whole
    yield "labels_are_all_that_is_learnt", labels_are_all_that_is_learnt
    yield "batches_hold_every_example", batches_hold_every_example
    yield "inputs_can_be_put_back", inputs_can_be_put_back


def _model_checks(
    bound: Callable[[], Task], load: Callable[[Labels | None], LoadedModel], examples: Sequence[Example]
) -> Checks:
    import torch

    class Twice(Criterion):
        """The plain losses of two passes."""

        passes = 2

        def single(self, targets: torch.Tensor, *logits: torch.Tensor) -> torch.Tensor:
            first, second = (super(Twice, self).single(targets, one) for one in logits)
            return first + second

        def multi(self, targets: torch.Tensor, *logits: torch.Tensor) -> torch.Tensor:
            first, second = (super(Twice, self).multi(targets, one) for one in logits)
            return first + second

        def regression(self, targets: torch.Tensor, *outputs: torch.Tensor) -> torch.Tensor:
            first, second = (super(Twice, self).regression(targets, one) for one in outputs)
            return first + second

    def ready() -> tuple[Task, LoadedModel, Batch]:
        task = bound()
        loaded = load(task.labels)
        loaded.module.eval()
        return task, loaded, task.collate([task.encode(row, loaded.processor) for row in examples], loaded.processor)

    def the_criterion_is_what_is_summed() -> None:
        task, loaded, batch = ready()
        loss, weight = task.loss(loaded.module, batch, Criterion())
        assert bool(torch.isfinite(loss)), f"the loss is {loss}"
        assert loss.requires_grad, "no gradient reaches the model"
        wanted = sum(task.encode(row, loaded.processor)["weight"] for row in examples)
        assert float(weight) == wanted, f"the weight is {float(weight):g}, that of the features {wanted:g}"
        twice, _ = task.loss(loaded.module, batch, Twice())
        assert torch.allclose(twice, 2 * loss, rtol=1e-4), f"two passes give {twice}, one gives {loss}"

    def predictions_have_their_keys() -> None:
        task, loaded, batch = ready()
        with torch.no_grad():
            predictions = task.predict(loaded.module, batch)
        assert len(predictions) == len(examples), f"{len(predictions)} predictions of {len(examples)} examples"
        missing = [sorted(task.predicts - found.keys()) for found in predictions if task.predicts - found.keys()]
        assert not missing, f"predictions lack {missing[0]}"

    yield "the_criterion_is_what_is_summed", the_criterion_is_what_is_summed
    yield "predictions_have_their_keys", predictions_have_their_keys
