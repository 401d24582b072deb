"""Checks of fast paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from ftengine.api import Batch, FastPath, InferencePath, LoadedModel, Task, TrainingContext, overrides
from ftengine.equivalence import differing
from ftengine.errors import InputError
from ftengine.plugins.attribution import token_count
from ftengine.testing.checks import Checks, run_checks, skip
from ftengine.testing.dropout_statistics import dropout_fault
from ftengine.testing.values import close
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
        task: whose loss the batch suits.
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
        path, loaded = self.make(), self.load()
        module = loaded.module.eval()
        if not (isinstance(path, InferencePath) and path.suits(module)):
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
    """Return that of a training of several epochs on a CPU, with a GiB to spare."""
    return TrainingContext(CPU, repeats=True, tokens=1000, room=lambda: 1 << 30, message=lambda text: None)


def variants(
    load: Callable[[], LoadedModel], prepare: Callable[[LoadedModel], object]
) -> Iterator[tuple[str, Callable[[], LoadedModel]]]:
    """Yield a model with different trained parts: all of it, its upper half, and as prepared by a strategy.

    Args:
        load: returns a model all of which trains.
        prepare: of a strategy.
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
