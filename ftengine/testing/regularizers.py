"""Checks of regularizers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

from ftengine.api import Batch, ChoosesCriterion, Criterion, HoldsState, LoadedModel, Regularizer, SeesSteps, Task
from ftengine.testing.checks import Checks, run_checks


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
    run_checks(_regularizer_checks(make, task, load, batch), expected_failed_checks)


def _regularizer_checks(
    make: Callable[[], Regularizer], task: Task, load: Callable[[], LoadedModel], batch: Batch
) -> Checks:
    import torch

    def attached() -> tuple[Regularizer, LoadedModel, Task]:
        regularizer, loaded, own = make(), load(), copy.deepcopy(task)
        regularizer.attach(loaded, own)
        return regularizer, loaded, own

    def loss(loaded: LoadedModel, task: Task, regularizer: Regularizer | None = None) -> torch.Tensor:
        criterion = Criterion()
        if isinstance(regularizer, ChoosesCriterion):
            criterion = regularizer.criterion(criterion)
        total, weight = task.loss(loaded.module, batch, criterion)
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

    def losses_and_penalties_are_finite_scalars() -> None:
        regularizer, loaded, own = attached()
        loaded.module.train()
        found = loss(loaded, own, regularizer)
        assert bool(torch.isfinite(found)), f"the loss is {found}"
        penalty = regularizer.penalty(loaded.module, batch, found)
        assert penalty is None or (penalty.numel() == 1 and bool(torch.isfinite(penalty))), f"it is {penalty}"

    def state_survives_a_checkpoint() -> None:
        regularizer, loaded, _ = attached()
        if not isinstance(regularizer, HoldsState):
            return
        with torch.no_grad():
            for parameter in loaded.module.parameters():
                parameter.add_(0.01)
        if isinstance(regularizer, SeesSteps):
            regularizer.stepped(loaded.module, 1)
        kept = {name: tensor.clone() for name, tensor in regularizer.tensors().items()}
        other, _, _ = attached()
        assert isinstance(other, HoldsState)
        other.restore(kept)
        found = other.tensors()
        assert found.keys() == kept.keys(), f"{sorted(found)} instead of {sorted(kept)}"
        assert all(torch.equal(found[name], kept[name]) for name in kept), "tensors differ after restore"

    yield "detaching_restores_the_model", detaching_restores_the_model
    yield "losses_and_penalties_are_finite_scalars", losses_and_penalties_are_finite_scalars
    yield "state_survives_a_checkpoint", state_survives_a_checkpoint
