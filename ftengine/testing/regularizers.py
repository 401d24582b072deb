"""Checks of regularizers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ftengine.api import Batch, ChoosesCriterion, Criterion, HoldsState, LoadedModel, Regularizer, SeesSteps, Task
from ftengine.testing.checks import methods, run_checks


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
    run_checks(methods(_RegularizerChecks(make, task, load, batch)), expected_failed_checks)


class _RegularizerChecks:
    def __init__(
        self, make: Callable[[], Regularizer], task: Task, load: Callable[[], LoadedModel], batch: Batch
    ) -> None:
        self._make, self._task, self._load, self._batch = make, task, load, batch

    def detaching_restores_the_model(self) -> None:
        plain = self._load()
        before = self._loss(plain, self._task).detach()
        regularizer, loaded, own = self._attached()
        regularizer.detach(loaded)
        loaded.module.train(plain.module.training)
        assert torch.equal(self._loss(loaded, own).detach(), before), "the loss differs after attach and detach"
        left = set(loaded.module.state_dict()) ^ set(plain.module.state_dict())
        assert not left, f"{sorted(left)[0]} was left behind or taken away"

    def losses_and_penalties_are_finite_scalars(self) -> None:
        regularizer, loaded, own = self._attached()
        loaded.module.train()
        found = self._loss(loaded, own, regularizer)
        assert bool(torch.isfinite(found)), f"the loss is {found}"
        penalty = regularizer.penalty(loaded.module, self._batch, found)
        assert penalty is None or (penalty.numel() == 1 and bool(torch.isfinite(penalty))), f"it is {penalty}"

    def state_survives_a_checkpoint(self) -> None:
        regularizer, loaded, _ = self._attached()
        if not isinstance(regularizer, HoldsState):
            return
        with torch.no_grad():
            for parameter in loaded.module.parameters():
                parameter.add_(0.01)
        if isinstance(regularizer, SeesSteps):
            regularizer.stepped(loaded.module, 1)
        kept = {name: tensor.clone() for name, tensor in regularizer.tensors().items()}
        other, _, _ = self._attached()
        assert isinstance(other, HoldsState)
        other.restore(kept)
        found = other.tensors()
        assert found.keys() == kept.keys(), f"{sorted(found)} instead of {sorted(kept)}"
        assert all(torch.equal(found[name], kept[name]) for name in kept), "tensors differ after restore"

    def _attached(self) -> tuple[Regularizer, LoadedModel, Task]:
        regularizer, loaded, own = self._make(), self._load(), copy.deepcopy(self._task)
        regularizer.attach(loaded, own)
        return regularizer, loaded, own

    def _loss(self, loaded: LoadedModel, task: Task, regularizer: Regularizer | None = None) -> Tensor:
        criterion = Criterion()
        if isinstance(regularizer, ChoosesCriterion):
            criterion = regularizer.criterion(criterion)
        total, weight = task.loss(loaded.module, self._batch, criterion)
        return total / weight
