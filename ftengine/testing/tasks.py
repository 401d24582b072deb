"""Checks of tasks."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ftengine.api import Batch, Criterion, Example, Labels, LoadedModel, Task
from ftengine.testing.checks import methods, run_checks


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
    data = _Data(make, processor, examples)
    checks = chain(methods(data), methods(_Computed(data, load)) if load else ())
    run_checks(checks, expected_failed_checks)


class _Data:
    def __init__(self, make: Callable[[], Task], processor: Any, examples: Sequence[Example]) -> None:
        self._make, self._processor, self._examples = make, processor, examples

    def encoding_is_pure_and_whole(self) -> None:
        task, before = self._bound(), copy.deepcopy(list(self._examples))
        for row in self._examples:
            features = task.encode(row, self._processor)
            missing = {"length", "weight", "truncated"} - set(features)
            assert not missing, f"features lack {sorted(missing)}"
            assert features == task.encode(row, self._processor), "a second call gives other features"
        assert list(self._examples) == before, "an example was changed in place"

    def labels_are_all_that_is_learnt(self) -> None:
        task, other = self._bound(), self._make()
        if task.labels is not None:
            stored = json.loads(json.dumps(asdict(task.labels)))
            other.labels = Labels(stored["kind"], tuple(stored["names"]))
        assert other.labels == task.labels, "labels differ after they were JSON"
        for name in ("evaluators", "predicts"):
            assert getattr(other, name) == getattr(task, name), f"{name} differ where the labels are given"
        for row in self._examples:
            assert other.encode(row, self._processor) == task.encode(row, self._processor), (
                "features differ where labels are given"
            )

    def batches_hold_every_example(self) -> None:
        task = self._bound()
        batch = task.collate([task.encode(row, self._processor) for row in self._examples], self._processor)
        sizes = {key: len(value) for key, value in batch.items() if hasattr(value, "shape")}
        assert set(sizes.values()) == {len(self._examples)}, (
            f"tensors of {sizes} rows for {len(self._examples)} examples"
        )

    def inputs_can_be_put_back(self) -> None:
        task = self._bound()
        for row in self._examples:
            view = task.view(row)
            again = task.view(task.with_inputs(row, list(view.inputs)))
            assert again.target == view.target, "the target changes with the inputs"
            assert len(again.inputs) == len(view.inputs), "the number of inputs changes"

    def _bound(self) -> Task:
        task = self._make()
        task.labels = task.bind({"train": self._examples})
        return task


class _Computed:
    def __init__(self, data: _Data, load: Callable[[Labels | None], LoadedModel]) -> None:
        self._bound, self._examples, self._load = data._bound, data._examples, load

    def the_criterion_is_what_is_summed(self) -> None:
        task, loaded, batch = self._ready()
        loss, weight = task.loss(loaded.module, batch, Criterion())
        assert bool(torch.isfinite(loss)), f"the loss is {loss}"
        assert loss.requires_grad, "no gradient reaches the model"
        wanted = sum(task.encode(row, loaded.processor)["weight"] for row in self._examples)
        assert float(weight) == wanted, f"the weight is {float(weight):g}, that of the features {wanted:g}"
        twice, _ = task.loss(loaded.module, batch, _Twice())
        assert torch.allclose(twice, 2 * loss, rtol=1e-4), f"two passes give {twice}, one gives {loss}"

    def predictions_have_their_keys(self) -> None:
        task, loaded, batch = self._ready()
        with torch.no_grad():
            predictions = task.predict(loaded.module, batch)
        assert len(predictions) == len(self._examples), (
            f"{len(predictions)} predictions of {len(self._examples)} examples"
        )
        missing = [sorted(task.predicts - found.keys()) for found in predictions if task.predicts - found.keys()]
        assert not missing, f"predictions lack {missing[0]}"

    def _ready(self) -> tuple[Task, LoadedModel, Batch]:
        task = self._bound()
        loaded = self._load(task.labels)
        loaded.module.eval()
        features = [task.encode(row, loaded.processor) for row in self._examples]
        return task, loaded, task.collate(features, loaded.processor)


class _Twice(Criterion):
    """The plain losses of two passes."""

    passes = 2

    def single(self, targets: Tensor, *logits: Tensor) -> Tensor:
        return super().single(targets, logits[0]) + super().single(targets, logits[1])

    def multi(self, targets: Tensor, *logits: Tensor) -> Tensor:
        return super().multi(targets, logits[0]) + super().multi(targets, logits[1])

    def regression(self, targets: Tensor, *outputs: Tensor) -> Tensor:
        return super().regression(targets, outputs[0]) + super().regression(targets, outputs[1])
