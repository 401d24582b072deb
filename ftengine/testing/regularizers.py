"""Checks of regularizers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from ftengine.api import (
    AveragesWeights,
    Batch,
    ChangesAtTheEnd,
    ChoosesCriterion,
    Criterion,
    HoldsState,
    LoadedModel,
    Regularizer,
    SeesSteps,
    Task,
)
from ftengine.model import state_tensors, trainable
from ftengine.plugins.returned import is_scalar
from ftengine.testing.checks import methods, run_checks, skip
from ftengine.testing.samples import on_meta
from ftengine.testing.values import require_json
from ftengine.training.modes import train_mode

STEPS, HALF = 6, 3
"""Steps of a run, and after how many of them it is interrupted."""


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
    run_checks(regularizer_checks(make, task, load, batch), expected_failed_checks)


def regularizer_checks(
    make: Callable[[], Regularizer], task: Task, load: Callable[[], LoadedModel], batch: Batch, on: str = ""
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the checks of a regularizer on one model."""
    return methods(_RegularizerChecks(make, task, load, batch), on)


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
        hooks = [sum(_hooks(part) for part in x.module.modules()) for x in (plain, loaded)]
        assert hooks[0] == hooks[1], f"detach leaves {hooks[1] - hooks[0]} hooks on the model: remove them"

    def attaching_leaves_the_weights_as_they_are(self) -> None:
        plain, (_, loaded, _) = self._load(), self._attached()
        before, after = plain.module.state_dict(), loaded.module.state_dict()
        moved = [name for name in before if name in after and not before[name].equal(after[name])]
        assert not moved, f"attach changes the values of {moved[0]}: only training may"

    def a_model_without_values_is_attached_alike(self) -> None:
        skeleton, regularizer = on_meta(self._load()), self._make()
        try:
            regularizer.attach(skeleton, copy.deepcopy(self._task))
            if isinstance(regularizer, ChoosesCriterion):
                regularizer.criterion(Criterion())
            regularizer.detach(skeleton)
        except (NotImplementedError, RuntimeError) as error:
            raise AssertionError(
                "attach or detach fails on a model on the meta device, whose weights have shapes but no values, which "
                f"is what it is called with first ({type(error).__name__}: {error}): read no values there"
            ) from error
        real = [name for name, p in skeleton.module.named_parameters() if not p.is_meta]
        assert not real, f"{real[0]} is not on the meta device, as the model was"

    def losses_and_penalties_are_finite_scalars(self) -> None:
        regularizer, loaded, own = self._attached()
        train_mode(loaded.module)
        found = self._loss(loaded, own, regularizer)
        assert bool(torch.isfinite(found)), f"the loss is {found}"
        penalty = regularizer.penalty(loaded.module, self._batch, found)
        if penalty is None:
            return
        scalar = is_scalar(penalty, tensor=True)
        assert scalar, f"penalty returns {penalty!r}; it must return a tensor of floats without dimensions, or None"
        assert bool(torch.isfinite(penalty)), f"the penalty is {penalty}"

    def a_seed_decides_a_training_pass(self) -> None:
        regularizer, loaded, own = self._attached()
        train_mode(loaded.module)
        found = []
        for _ in "ab":
            torch.manual_seed(1)
            loss = self._loss(loaded, own, regularizer)
            penalty = regularizer.penalty(loaded.module, self._batch, loss)
            found.append((loss + (0 if penalty is None else penalty)).detach())
        assert found[0].equal(found[1]), (
            "loss and penalty of two passes differ though torch's seed is the same: draw from torch's global generator "
            "alone, and keep nothing between passes"
        )

    def state_survives_a_checkpoint(self) -> None:
        regularizer, loaded, _ = self._attached()
        if not isinstance(regularizer, HoldsState):
            skip("it says that it holds no state")
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

    def a_resumed_run_is_the_uninterrupted_one(self) -> None:
        regularizer, loaded, own = self._attached()
        self._train(regularizer, loaded, own, 0, HALF)
        weights = {name: tensor.detach().clone() for name, tensor in state_tensors(loaded.module).items()}
        held = _held(regularizer)
        self._train(regularizer, loaded, own, HALF, STEPS)
        other, again, task = self._attached()
        with torch.no_grad():
            for name, tensor in state_tensors(again.module).items():
                tensor.copy_(weights[name])
        if isinstance(other, HoldsState) and held:
            other.restore(held)
        self._train(other, again, task, HALF, STEPS)
        advice = "what it remembers from step to step must be in tensors() and be set by restore()"
        for what, one, two in (
            ("weights", state_tensors(loaded.module), state_tensors(again.module)),
            ("kept weights", self._kept(regularizer, loaded), self._kept(other, again)),
            ("state", _held(regularizer), _held(other)),
        ):
            differing = [name for name in one if name not in two or not one[name].equal(two[name])]
            assert not differing, (
                f"a run that is interrupted after {HALF} of {STEPS} steps and resumed ends with another {differing[0]} "
                f"({what}): {advice}"
            )

    def what_is_changed_at_the_end_is_told_as_json(self) -> None:
        measured: tuple[dict[str, float], ...] = ({"validation_loss": 1.0, "general_loss": 2.0}, {})
        for losses in measured:
            regularizer, loaded, own = self._attached()
            if not isinstance(regularizer, ChangesAtTheEnd):
                skip("it changes nothing at the end")
            if not losses and regularizer.needs_validation:
                continue
            self._train(regularizer, loaded, own, 0, 1)
            require_json(regularizer.finish(loaded.module, partial(dict, losses)), "finish()")
            odd = [n for n, tensor in state_tensors(loaded.module).items() if not bool(torch.isfinite(tensor).all())]
            assert not odd, f"finish leaves values in {odd[0]} that are not finite"

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

    def _train(self, regularizer: Regularizer, loaded: LoadedModel, task: Task, start: int, stop: int) -> None:
        """Train as the loop does: seeded by the step, with the penalty, and told of every step."""
        optimizer = torch.optim.SGD(trainable(loaded.module).values(), lr=0.01)
        for step in range(start, stop):
            torch.manual_seed(step)
            train_mode(loaded.module)
            loss = self._loss(loaded, task, regularizer)
            penalty = regularizer.penalty(loaded.module, self._batch, loss.detach())
            optimizer.zero_grad()
            (loss if penalty is None else loss + penalty).backward()
            torch.nn.utils.clip_grad_norm_(trainable(loaded.module).values(), 1.0)
            optimizer.step()
            if isinstance(regularizer, SeesSteps):
                regularizer.stepped(loaded.module, step + 1)

    def _kept(self, regularizer: Regularizer, loaded: LoadedModel) -> dict[str, Tensor]:
        """Return copies of the weights that would be kept."""
        with regularizer.evaluating(loaded.module) if isinstance(regularizer, AveragesWeights) else nullcontext():
            return {name: tensor.detach().clone() for name, tensor in state_tensors(loaded.module).items()}


def _hooks(part: torch.nn.Module) -> int:
    return len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks)


def _held(regularizer: Regularizer) -> dict[str, Tensor]:
    if not isinstance(regularizer, HoldsState):
        return {}
    return {name: tensor.clone() for name, tensor in regularizer.tensors().items()}
