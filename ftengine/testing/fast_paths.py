"""Checks of fast paths."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftengine.api import Batch, FastPath, InferencePath, LoadedModel, Task, TrainingContext, overrides
from ftengine.equivalence import DROPPED, differing, distance
from ftengine.errors import InputError
from ftengine.model import trainable
from ftengine.model.modes import drops
from ftengine.plugins.attribution import token_count
from ftengine.testing.checks import Checks, run_checks, skip
from ftengine.testing.values import close
from ftengine.text import number
from ftengine.training.fast_paths import NOTHING, Replaced, activated, compared, state_of, unfit
from ftengine.training.probe import Around, Computation, ProbeBatch

CPU = torch.device("cpu")
LONG = 300
"""Tokens of a long row: more than a path may treat as short, and no power of two."""


def check_fast_path(
    make: Callable[[], FastPath],
    task: Task,
    load: Callable[[], LoadedModel],
    batch: Batch,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check a fast path on a small, prepared model.

    If it finds nothing to replace in the model, or needs another device than a CPU, its checks are skipped.

    Args:
        make: returns a fresh fast path.
        task: a task for whose loss the batch is made.
        load: returns the same small model each time.
        batch: a training batch.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    run_checks(FastPathChecks(make, task, load, batch), expected_failed_checks)


@dataclass
class FastPathChecks(Checks):
    """Checks of a fast path on one model."""

    make: Callable[[], FastPath]
    task: Task
    load: Callable[[], LoadedModel]
    batch: Batch

    def it_computes_what_the_model_does(self) -> None:
        self._compared(torch.float32)

    def in_bfloat16_too(self) -> None:
        self._compared(torch.bfloat16)

    def in_evaluation_mode_too(self) -> None:
        path, loaded = self._suited()
        fault = ProbeBatch(loaded, self.task, self.batch, CPU).fault(self._computation(path, loaded), training=False)
        assert not fault, f"in evaluation mode, as in validation, it does not compute what the model does: {fault}"

    def rows_of_many_tokens_too(self) -> None:
        self._compared(torch.float32, self._long_batch())

    def dropout_keeps_its_rate_and_mean(self) -> None:
        path, loaded = self._suited()
        if not path.traits.draws_randomness:
            skip("it draws no random numbers, so it was compared with the model's own dropout")
        fault = dropout_fault(ProbeBatch(loaded, self.task, self.batch, CPU), self._computation(path, loaded))
        assert not fault, fault

    def leaving_it_restores_the_model(self) -> None:
        path, loaded = self._suited()
        before = state_of(loaded), ProbeBatch(loaded, self.task, self.batch, CPU).own(training=True)
        for _ in "ab":
            with activated([path], loaded, training_context()):
                pass
        after = state_of(loaded), ProbeBatch(loaded, self.task, self.batch, CPU).own(training=True)
        changed = differing(before[0], after[0]) + differing(before[1].tensors, after[1].tensors)
        assert not changed, f"{changed[0]} changed between entering it and leaving it"

    def a_failed_run_leaves_it_too(self) -> None:
        path, loaded = self._suited()
        before = state_of(loaded)
        try:
            with activated([path], loaded, training_context()):
                raise KeyError("a step failed")
        except KeyError:
            pass
        after = state_of(loaded)
        changed = differing(before, after)
        assert not changed, f"{changed[0]} changed in a run that failed: restore everything in a `finally`"

    def predictions_stay_the_same(self) -> None:
        path, other, loaded = self.make(), self.make(), self.load()
        module = loaded.module.eval()
        if not (isinstance(path, InferencePath) and isinstance(other, InferencePath) and path.suits(module)):
            skip("no predictions of this model are made by it")
        before = state_of(loaded)
        with torch.no_grad():
            own = self.task.predict(module, self.batch)
            with path.around_prediction(module, self.batch):
                predictions = self.task.predict(module, self.batch)
        for i, (expected, two) in enumerate(zip(own, predictions, strict=True)):
            changed = next((key for key in expected if not close(expected[key], two.get(key))), None)
            assert changed is None, f"it predicts another {changed} of example {i} than the model itself"
        token_count(path, "predicted_tokens", path.predicted_tokens(module, self.batch))
        result = path.probe_result(module)
        if result is not None:
            other.restore_probe_result(module, json.loads(json.dumps(result)))
        moved = differing(before, state_of(loaded))
        assert not moved, f"predicting changes {moved[0]}: restore everything"

    def _computation(self, path: FastPath, loaded: LoadedModel) -> Computation:
        @contextmanager
        def computation() -> Iterator[Around | None]:
            with activated([path], loaded, training_context()):
                yield path.around_batch if overrides(path, "around_batch") else None

        return computation

    def _long_batch(self) -> Batch:
        """Return two rows that repeat the batch's rows; the first has the model's greatest length, at most LONG."""
        batch, limit = self.batch, self.load().max_length
        mask = batch.get("attention_mask")
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
            skip("its rows have no tokens")
        length = LONG if limit is None else min(LONG, limit)
        return {name: _repeated(x, mask, length) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}

    def _compared(self, compute: torch.dtype, batch: Batch | None = None) -> None:
        path, loaded = self._suited()
        replaced, batch = Replaced(), self.batch if batch is None else batch
        members = range(max(len(x) for x in batch.values() if isinstance(x, torch.Tensor) and x.ndim))
        probe = ProbeBatch(loaded, self.task, batch, CPU, compute, members)
        fault = compared([path], probe, training_context(), replaced)
        assert not fault, f"it does not compute what the model does: {fault}"
        counts = replaced[path.name] or {}
        if not counts:
            skip(NOTHING)
        wrong = {kind: count for kind, count in counts.items() if not (isinstance(count, int) and count > 0)}
        assert not wrong, f"it yields {wrong}: yield positive counts of what it replaces, and omit the rest"

    def _suited(self) -> tuple[FastPath, LoadedModel]:
        """Return a fresh path and model; skip if it finds nothing to replace in such a model."""
        path, loaded = self.make(), self.load()
        if reason := unfit(path, loaded, CPU):
            skip(reason)
        with activated([path], loaded, training_context()) as counts:
            if counts[path.name] is None:
                skip(NOTHING)
        return self.make(), self.load()


def _repeated(x: torch.Tensor, mask: torch.Tensor, length: int) -> torch.Tensor:
    """Return the first two rows of what is known of tokens, repeated up to a length; the second one is padded."""
    if x.ndim != 2 or x.is_floating_point():
        return x[:2]
    if x.shape != mask.shape:  # what is written of a text that is read
        return x[:2].repeat(1, -(-length // (2 * x.shape[1])))
    rows_mask = mask[:2].bool()
    padding = x[~mask.bool()][0] if not mask.all() else torch.zeros((), dtype=x.dtype)
    rows = padding.expand(2, length).clone()
    for row, own, cut in zip(rows, (x[i][rows_mask[i]] for i in range(2)), (length, length - 9), strict=True):
        row[:cut] = own.repeat(-(-length // len(own)))[:cut]
    return rows


def training_context() -> TrainingContext:
    """Return the context of a training of several epochs on a CPU with 1 GiB of free memory."""
    return TrainingContext(CPU, repeats=True, tokens=1000, room=lambda: 1 << 30, message=lambda text: None)


def variants(
    load: Callable[[], LoadedModel], prepare: Callable[[LoadedModel], object]
) -> Iterator[tuple[str, Callable[[], LoadedModel]]]:
    """Yield a model with different trained parts: all of it, its upper half, and as prepared by a strategy.

    Args:
        load: returns a model of which all parameters train.
        prepare: a strategy's `prepare`.
    """

    def upper_half() -> LoadedModel:
        loaded = load()
        parameters = list(loaded.module.parameters())
        for parameter in parameters[: len(parameters) // 2]:
            parameter.requires_grad_(False)
        return loaded

    def prepared() -> LoadedModel:
        loaded = load()
        prepare(loaded)
        return loaded

    yield from (("", load), (" whose upper half trains", upper_half))
    with suppress(InputError):
        prepared()
        yield " as a strategy prepared it", prepared


RAISED = 0.5
"""The probability of dropout during the measurement; smaller ones have too little effect."""

PASSES, AGAIN = 8, 16
"""Passes of each computation, and more passes if these differ."""

ERRORS = 7.0
"""Two means differ if they are more than so many standard errors and `DROPPED` of their size apart."""

Values = dict[str, Tensor]
Statistics = Mapping[str, np.ndarray]
"""For each value, (passes, 2) with c and ‖r‖² / ‖a‖²."""


def dropout_fault(probe: ProbeBatch, computation: Computation) -> str:
    """Return where a computation's dropout has another rate or scale than the model's; "" if nowhere.

    Each input x of a module is compared with its input a without dropout: x = c·a + r with c = ⟨x, a⟩ / ⟨a, a⟩. Over
    many masks, the mean of c shows whether the remaining values are scaled by 1 / (1 - p), and the mean of ‖r‖² / ‖a‖²
    how much is dropped. The same holds for the gradient of each parameter, which has the same masks.
    """
    module = probe.loaded.module
    with _with_dropout(module, 0.0):
        reference = _alike(_without_dropout(probe, None), _without_dropout(probe, computation))
    with _with_dropout(module, RAISED) as drops:
        if not drops:
            return ""
        first, suspects = 0, list[tuple[str, int]]()
        for passes in (PASSES, AGAIN):
            seeds = range(first, first + passes)
            own, other = (_statistics(probe, candidate, reference, seeds) for candidate in (None, computation))
            differing = _differing(own, other)
            if passes == AGAIN:
                differing = [name_and_kind for name_and_kind in differing if name_and_kind in suspects]
            if not differing:
                return ""
            first, suspects = first + passes, differing
    name, kind = suspects[0]
    measured, mean = (float(statistics[name][:, kind].mean()) for statistics in (other, own))
    effect = ("are scaled by", "vary by")[kind]
    return (
        f"with dropout of {RAISED:g}, {name} {effect} {number(measured)} in the mean over {AGAIN} passes, but by "
        f"{number(mean)} in the model itself: keep a share of 1 - p, scaled by 1 / (1 - p), in the forward and "
        "the backward pass"
    )


def _without_dropout(probe: ProbeBatch, computation: Computation | None) -> Values:
    with probe.computing(training=True, computation=computation) as around:
        _values(probe, around, 0)  # the first pass of a fast path may also probe the model
        return _values(probe, around, 0)


def _alike(own: Values, other: Values) -> Values:
    """Return the model's values that the other computation reproduces; others may have another layout."""
    return {name: a for name, a in own.items() if name in other and distance(other[name], a) <= DROPPED}


@contextmanager
def _with_dropout(module: nn.Module, probability: float) -> Iterator[bool]:
    """Set all dropout probabilities of a model; yield whether it has dropout."""
    places = [(part, *rate) for part in module.modules() for rate in drops(part).items()]
    for part, name, _ in places:
        setattr(part, name, probability)
    try:
        yield bool(places)
    finally:
        for part, name, value in places:
            setattr(part, name, value)


def _statistics(probe: ProbeBatch, computation: Computation | None, reference: Values, seeds: range) -> Statistics:
    statistics = defaultdict[str, list[tuple[float, float]]](list)
    with probe.computing(training=True, computation=computation) as around:
        for seed in seeds:
            for name, x in _values(probe, around, seed).items():
                a = reference.get(name)
                if a is None or a.shape != x.shape or not (size := float(a.square().sum())):
                    continue
                scale = float((x * a).sum()) / size
                statistics[name].append((scale, float((x - scale * a).square().sum()) / size))
    return {name: np.array(values) for name, values in statistics.items() if len(values) == len(seeds)}


def _values(probe: ProbeBatch, around: Any, seed: int) -> Values:
    """Return the inputs of each module in a pass, and the gradients of the trainable parameters."""
    module, values = probe.loaded.module, Values()

    def look(name: str, inputs: tuple[Any, ...]) -> None:
        first = next((x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()), None)
        if first is not None:
            values.setdefault(f"the inputs of {name!r}", first.detach().flatten().double())

    handles = [
        part.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs))
        for name, part in module.named_modules()
    ]
    try:
        probe.loss(around, seed).backward()
        for name, parameter in trainable(module).items():
            if parameter.grad is not None:
                values[f"gradients of {name!r}"] = parameter.grad.detach().flatten().double()
        return values
    finally:
        for handle in handles:
            handle.remove()
        module.zero_grad(set_to_none=True)


def _differing(own: Statistics, other: Statistics) -> list[tuple[str, int]]:
    """Return the names of values whose means differ, with 0 for c or 1 for ‖r‖² / ‖a‖², in the order of computation."""
    differing = []
    for name in own:
        if name not in other:
            continue
        for kind in (0, 1):
            mine, two = own[name][:, kind], other[name][:, kind]
            error = ((mine.var(ddof=1) + two.var(ddof=1)) / len(mine)) ** 0.5
            if abs(mine.mean() - two.mean()) > ERRORS * error + DROPPED * max(abs(mine.mean()), kind * 1e-3):
                differing.append((name, kind))
    return differing
