"""Conformance checks for authors of plugins: what the engine relies on, each check with a name.

    from ftengine.testing import check_strategy

    def test_my_strategy():
        check_strategy(MyStrategy, load_a_tiny_model, a_batch)

A check that a component is known to fail is named with its reason, `expected_failed_checks={"merge": "…"}`; it must
fail then, so that the list does not outlive its reasons. Whatever else fails is told at once, in one AssertionError.
"""

from __future__ import annotations

import copy
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftengine.api import (
    Augmenter,
    Batch,
    EvaluationContext,
    Evaluator,
    Example,
    LoadedModel,
    Prediction,
    Regularizer,
    Strategy,
    Task,
)
from ftengine.errors import NotMergeable

Checks = Iterator[tuple[str, Callable[[], None]]]
"""Names of checks, and what raises where one fails."""


def check_strategy(
    make: Callable[[], Strategy],
    load: Callable[[], LoadedModel],
    batch: Batch,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check a strategy on a small model.

    Args:
        make: returns a fresh strategy, e.g. its class.
        load: returns the same small transformers model each time, newly loaded.
        batch: its inputs with labels, as its forward takes them.
        expected_failed_checks: names of checks that fail, with reasons.

    Raises:
        AssertionError: names every check that failed, or passed though it was expected to fail.
    """
    _run(_strategy_checks(make, load, batch), expected_failed_checks)


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
    _run(_augmenter_checks(make, task, examples), expected_failed_checks)


def check_regularizer(
    make: Callable[[], Regularizer],
    task: Task,
    load: Callable[[], LoadedModel],
    batch: Batch,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check a regularizer on a small model whose parameters train.

    Args:
        make: returns a fresh regularizer.
        task: whose loss the batch suits.
        load: returns the same small model each time, newly loaded, in evaluation mode; `pretrained` names what
            came with the base.
        batch: a training batch.
        expected_failed_checks: names of checks that fail, with reasons.

    Raises:
        AssertionError: as `check_strategy`.
    """
    _run(_regularizer_checks(make, task, load, batch), expected_failed_checks)


def check_evaluator(
    make: Callable[[], Evaluator],
    context: EvaluationContext,
    predictions: Sequence[Prediction],
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check an evaluator on some predictions.

    Args:
        make: returns a fresh evaluator.
        context: what it is bound to.
        predictions: four at least, such as the task makes.
        expected_failed_checks: names of checks that fail, with reasons.

    Raises:
        AssertionError: as `check_strategy`.
    """
    _run(_evaluator_checks(make, context, predictions), expected_failed_checks)


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
    _run(_task_checks(make, processor, examples), expected_failed_checks)


def _run(checks: Checks, expected: Mapping[str, str] | None) -> None:
    expected, failed, names = expected or {}, {}, []
    for name, check in checks:
        names.append(name)
        try:
            check()
        # A broken component may raise anything; each is that check's failure.
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            failed[name] = f"{name}: {kind}{error}"
    unknown = sorted(set(expected) - set(names))
    assert not unknown, f"expected_failed_checks names {unknown}; there are {names}."
    wrong = [text for name, text in failed.items() if name not in expected]
    wrong += [
        f"{name}: passes, though it was expected to fail ({expected[name]})" for name in expected if name not in failed
    ]
    assert not wrong, "; ".join(wrong)


def _strategy_checks(make: Callable[[], Strategy], load: Callable[[], LoadedModel], batch: Batch) -> Checks:
    import torch

    def prepared() -> tuple[Strategy, LoadedModel]:
        torch.manual_seed(0)
        strategy, loaded = make(), load()
        strategy.prepare(loaded)
        return strategy, loaded

    def outputs(loaded: LoadedModel) -> torch.Tensor:
        with torch.no_grad():
            return loaded.module.eval()(**batch).logits

    def step(strategy: Strategy, loaded: LoadedModel) -> None:
        groups = strategy.param_groups(loaded.module, 0.01, 0.1)
        optimizer = torch.optim.AdamW(groups)
        loaded.module.train()(**batch).loss.backward()
        optimizer.step()

    def something_trains() -> None:
        _, loaded = prepared()
        assert any(p.requires_grad for p in loaded.module.parameters()), "no parameter requires a gradient"

    def frozen_weights_do_not_move() -> None:
        strategy, loaded = prepared()
        frozen = {n: p.detach().clone() for n, p in loaded.module.named_parameters() if not p.requires_grad}
        step(strategy, loaded)
        now = dict(loaded.module.named_parameters())
        moved = [name for name, before in frozen.items() if not torch.equal(before, now[name])]
        assert not moved, f"{moved[0]} moved in a step"

    def groups_hold_each_trainable_parameter_once() -> None:
        strategy, loaded = prepared()
        given = [id(p) for group in strategy.param_groups(loaded.module, 0.01, 0.1) for p in group["params"]]
        trainable = [id(p) for p in loaded.module.parameters() if p.requires_grad]
        assert sorted(given) == sorted(trainable), f"{len(given)} in groups, {len(trainable)} require a gradient"

    def counts_are_the_same_each_time() -> None:
        counts = [[(n, p.numel()) for n, p in prepared()[1].module.named_parameters() if p.requires_grad] for _ in "ab"]
        assert counts[0] == counts[1], "two preparations leave different parameters to train"

    def saved_and_loaded_outputs_are_equal() -> None:
        strategy, loaded = prepared()
        before = outputs(loaded)
        step(strategy, loaded)
        after = outputs(loaded)
        assert not torch.equal(before, after), "a step with a learning rate of 0.01 changes no output"
        with tempfile.TemporaryDirectory() as folder:
            strategy.save(loaded, Path(folder))
            other, again = prepared()
            other.load(again, Path(folder))
            difference = (outputs(again) - after).abs().max()
        assert difference == 0, f"outputs differ by {difference:.3g} after save and load"

    def merging_keeps_the_outputs_or_is_refused_early() -> None:
        strategy, loaded = prepared()
        step(strategy, loaded)
        before = outputs(loaded)
        try:
            strategy.check_merge()
        except NotMergeable:
            return
        strategy.merge(loaded)
        difference = (outputs(loaded) - before).norm() / before.norm()
        assert difference < 1e-4, f"merging changes outputs by {difference:.3g} of their size"

    yield "something_trains", something_trains
    yield "frozen_weights_do_not_move", frozen_weights_do_not_move
    yield "groups_hold_each_trainable_parameter_once", groups_hold_each_trainable_parameter_once
    yield "counts_are_the_same_each_time", counts_are_the_same_each_time
    yield "saved_and_loaded_outputs_are_equal", saved_and_loaded_outputs_are_equal
    yield "merging_keeps_the_outputs_or_is_refused_early", merging_keeps_the_outputs_or_is_refused_early


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


def _regularizer_checks(
    make: Callable[[], Regularizer], task: Task, load: Callable[[], LoadedModel], batch: Batch
) -> Checks:
    import torch

    def attached() -> tuple[Regularizer, LoadedModel, Task]:
        regularizer, loaded, own = make(), load(), copy.deepcopy(task)
        regularizer.attach(loaded, own)
        return regularizer, loaded, own

    def loss(loaded: LoadedModel, task: Task) -> torch.Tensor:
        total, weight = task.loss(loaded.module, batch)
        return total / weight

    def detaching_restores_the_model() -> None:
        plain = load()
        before = loss(plain, task).detach()
        regularizer, loaded, own = attached()
        regularizer.detach(loaded)
        loaded.module.train(plain.module.training)
        assert torch.equal(loss(loaded, own).detach(), before), "the loss differs after attach and detach"
        left = set(loaded.module.state_dict()) ^ set(plain.module.state_dict())
        assert not left, f"{sorted(left)[0]} was left behind or taken away"

    def penalties_are_finite_scalars() -> None:
        regularizer, loaded, own = attached()
        penalty = regularizer.penalty(loaded.module.train(), batch, loss(loaded, own))
        assert penalty is None or (penalty.numel() == 1 and bool(torch.isfinite(penalty))), f"it is {penalty}"

    def state_survives_a_checkpoint() -> None:
        regularizer, loaded, _ = attached()
        with torch.no_grad():
            for parameter in loaded.module.parameters():
                parameter.add_(0.01)
        regularizer.stepped(loaded.module, 1)
        kept = {name: tensor.clone() for name, tensor in regularizer.tensors().items()}
        other, _, _ = attached()
        other.restore(kept)
        found = other.tensors()
        assert found.keys() == kept.keys(), f"{sorted(found)} instead of {sorted(kept)}"
        assert all(torch.equal(found[name], kept[name]) for name in kept), "tensors differ after restore"

    yield "detaching_restores_the_model", detaching_restores_the_model
    yield "penalties_are_finite_scalars", penalties_are_finite_scalars
    yield "state_survives_a_checkpoint", state_survives_a_checkpoint


def _evaluator_checks(
    make: Callable[[], Evaluator], context: EvaluationContext, predictions: Sequence[Prediction]
) -> Checks:
    import numpy as np

    evaluator = make()
    evaluator.bind(context)

    def rows(some: Sequence[Prediction]) -> np.ndarray:
        return np.stack([np.asarray(evaluator.statistics(one), dtype=np.float64) for one in some])

    def figures(sums: np.ndarray) -> dict[str, Any]:
        with np.errstate(all="ignore"):
            return {name: np.asarray(value) for name, value in evaluator.metrics(sums).items()}

    def statistics_have_one_width() -> None:
        widths = {len(evaluator.statistics(one)) for one in predictions}
        assert len(widths) == 1, f"examples give {sorted(widths)} numbers"

    def statistics_are_pure() -> None:
        before = copy.deepcopy(list(predictions))
        assert np.array_equal(rows(predictions), rows(predictions), equal_nan=True), "a second call gives other numbers"
        assert list(predictions) == before, "a prediction was changed in place"

    def metrics_take_any_leading_shape() -> None:
        sums = rows(predictions)
        together = figures(sums)
        for i, row in enumerate(sums):
            for name, value in figures(row).items():
                same = np.allclose(together[name][i], value, equal_nan=True)
                assert same, f"{name} of row {i} alone is {value}, among others {together[name][i]}"

    def merged_sums_are_the_whole() -> None:
        whole = rows(predictions).sum(axis=0)
        half = len(predictions) // 2
        merged = rows(predictions[half:]).sum(axis=0) + rows(predictions[:half]).sum(axis=0)
        one, other = figures(whole), figures(merged)
        assert all(np.allclose(one[name], other[name], equal_nan=True) for name in one), "halves do not add up"

    def directions_name_every_metric() -> None:
        found, named = set(figures(rows(predictions).sum(axis=0))), set(evaluator.higher_is_better)
        assert found == named, f"metrics {sorted(found)}, higher_is_better {sorted(named)}"

    def details_are_json() -> None:
        counts: dict[Any, int] = {}
        for one in predictions:
            for key in evaluator.counts(one):
                counts[key] = counts.get(key, 0) + 1
        with np.errstate(all="ignore"):
            details = evaluator.details(rows(predictions).sum(axis=0), counts)
        json.dumps(dict(details), allow_nan=False)

    yield "statistics_have_one_width", statistics_have_one_width
    yield "statistics_are_pure", statistics_are_pure
    yield "metrics_take_any_leading_shape", metrics_take_any_leading_shape
    yield "merged_sums_are_the_whole", merged_sums_are_the_whole
    yield "directions_name_every_metric", directions_name_every_metric
    yield "details_are_json", details_are_json


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


__all__ = ["check_augmenter", "check_evaluator", "check_regularizer", "check_strategy", "check_task"]
