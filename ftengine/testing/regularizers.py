"""Checks of regularizers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ftengine.api import Batch, Labels, LoadedModel, Regularizer, Task, overrides
from ftengine.equivalence import differing
from ftengine.model import Criterion, state_tensors, trainable
from ftengine.model.modes import hooks
from ftengine.testing.checks import Checks, run_checks, skip
from ftengine.testing.samples import on_meta
from ftengine.testing.values import copies, explained, in_bfloat16, require_meta, without_values
from ftengine.training.criterion_faults import criterion_fault, outputs_of, split_fault
from ftengine.training.losses import loss_of
from ftengine.training.modes import train_mode
from ftengine.training.regularizing import Attached

CriterionFault = Callable[[Criterion, Labels | None, int, torch.device], str]
"""Says what is wrong with a criterion for a task's labels and so many outputs; "" where nothing is."""

STEPS, HALF = 4, 2
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
        task: a task for whose loss the batch is made.
        load: returns a new copy of the same small model in each call, in evaluation mode; its `pretrained` names the
            base's parameters.
        batch: a training batch.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    run_checks(RegularizerChecks(make, task, load, batch), expected_failed_checks)


@dataclass
class RegularizerChecks(Checks):
    """Checks of a regularizer on one model, attached as the engine does it."""

    make: Callable[[], Regularizer]
    task: Task
    load: Callable[[], LoadedModel]
    batch: Batch

    def detaching_restores_the_model(self) -> None:
        plain = self.load()
        before = self._loss(plain, self.task, Criterion()).detach()
        attached, loaded, own = self._attached()
        attached.detach()
        loaded.module.train(plain.module.training)
        after = self._loss(loaded, own, Criterion()).detach()
        assert after.equal(before), "the loss differs after attach and detach"
        keys = set(loaded.module.state_dict()) ^ set(plain.module.state_dict())
        assert not keys, f"detach() does not restore the keys of the state_dict: {sorted(keys)[0]}"
        more = sum(map(hooks, loaded.module.modules())) - sum(map(hooks, plain.module.modules()))
        assert not more, f"detach leaves {more} hooks on the model: remove them"

    def attaching_leaves_the_weights_as_they_are(self) -> None:
        after = self._attached()[1].module.state_dict()
        before = {name: tensor for name, tensor in self.load().module.state_dict().items() if name in after}
        moved = differing(before, after)
        assert not moved, f"attach changes the values of {moved[0]}: only training may"

    def a_model_without_values_is_attached_alike(self) -> None:
        skeleton = on_meta(self.load())
        with without_values("attach or detach"):
            Attached([self.make()], skeleton, copy.deepcopy(self.task)).detach()
        require_meta(skeleton.module)

    def losses_and_penalties_are_finite_scalars(self) -> None:
        loss, penalty = self._pass(*self._attached())
        assert bool(torch.isfinite(loss)), f"the loss is {loss}"
        assert penalty is None or bool(torch.isfinite(penalty)), f"the penalty is {penalty}"

    def its_criterion_falls_where_labels_get_likelier(self) -> None:
        self._criterion_has_no(criterion_fault)

    def its_criterion_goes_by_each_row_alone(self) -> None:
        self._criterion_has_no(split_fault)

    def it_works_in_bfloat16(self) -> None:
        loaded, own = self.load(), copy.deepcopy(self.task)
        advice = "compute in the dtype of the inputs, and convert if two differ"
        with in_bfloat16(loaded.module), explained("a pass in bfloat16, under autocast, fails", advice):
            loss, penalty = self._pass(Attached([self.make()], loaded, own), loaded, own)
            (loss if penalty is None else loss + penalty).backward()

    def a_seed_decides_a_training_pass(self) -> None:
        attached = self._attached()
        losses = []
        for _ in "ab":
            torch.manual_seed(1)
            loss, penalty = self._pass(*attached)
            losses.append((loss if penalty is None else loss + penalty).detach())
        assert losses[0].equal(losses[1]), (
            "loss and penalty of two passes differ with the same seed: use only torch's global generator, and "
            "store nothing between passes"
        )

    def state_survives_a_checkpoint(self) -> None:
        if not overrides(self.make(), "state_dict"):
            skip("it says that it holds no state")
        attached, loaded, _ = self._attached()
        with torch.no_grad():
            for parameter in loaded.module.parameters():
                parameter.add_(0.01)
        attached.on_step_end(1)
        saved = copies(attached.state_dict())
        other, _, _ = self._attached()
        other.load_state_dict(saved)
        state = other.state_dict()
        assert state.keys() == saved.keys(), f"{sorted(state)} instead of {sorted(saved)}"
        assert not differing(saved, state), "tensors differ after load_state_dict"

    def a_resumed_run_is_the_uninterrupted_one(self) -> None:
        attached, loaded, own = self._attached()
        self._train(attached, loaded, own, 0, HALF)
        weights, saved_state = copies(state_tensors(loaded.module)), copies(attached.state_dict())
        self._train(attached, loaded, own, HALF, STEPS)
        other, again, task = self._attached()
        with torch.no_grad():
            for name, tensor in state_tensors(again.module).items():
                tensor.copy_(weights[name])
        other.load_state_dict(saved_state)
        self._train(other, again, task, HALF, STEPS)
        for tensors, expected, two in (
            ("weights", state_tensors(loaded.module), state_tensors(again.module)),
            ("kept weights", _weights_to_keep(attached, loaded), _weights_to_keep(other, again)),
            ("state", attached.state_dict(), other.state_dict()),
        ):
            other_ones = differing(expected, two)
            assert not other_ones, (
                f"a run that is interrupted after {HALF} of {STEPS} steps and resumed ends with another "
                f"{other_ones[0]} ({tensors}): put all state into state_dict() and restore it in "
                "load_state_dict()"
            )

    def what_on_train_end_returns_is_json(self) -> None:
        regularizer = self.make()
        if not overrides(regularizer, "on_train_end"):
            skip("it changes nothing at the end")
        losses = {"validation_loss": 1.0, "general_loss": 2.0}
        for measured in (losses,) if regularizer.traits.needs_validation else (losses, {}):
            attached, loaded, own = self._attached()
            self._train(attached, loaded, own, 0, 1)
            attached.on_train_end(loaded.module, partial(dict[str, float], measured))
            odd = [n for n, tensor in state_tensors(loaded.module).items() if not bool(torch.isfinite(tensor).all())]
            assert not odd, f"on_train_end leaves values in {odd[0]} that are not finite"

    def _criterion_has_no(self, fault: CriterionFault) -> None:
        if not overrides(self.make(), "criterion"):
            skip("it trains on the plain losses")
        attached, loaded, task = self._attached()
        reason = fault(attached.criterion, task.labels, outputs_of(task, loaded.module), torch.device("cpu"))
        assert not reason, f"its criterion is wrong: {reason}"

    def _attached(self) -> tuple[Attached, LoadedModel, Task]:
        loaded, own = self.load(), copy.deepcopy(self.task)
        return Attached([self.make()], loaded, own), loaded, own

    def _loss(self, loaded: LoadedModel, task: Task, criterion: Criterion) -> Tensor:
        total, weight = loss_of(task, loaded.module, self.batch, criterion)
        return total / weight

    def _pass(self, attached: Attached, loaded: LoadedModel, task: Task) -> tuple[Tensor, Tensor | None]:
        """Return the loss and the penalty of a pass in training mode."""
        train_mode(loaded.module)
        loss = self._loss(loaded, task, attached.criterion)
        return loss, attached.penalty(self.batch, loss)

    def _train(self, attached: Attached, loaded: LoadedModel, task: Task, start: int, stop: int) -> None:
        """Train as the loop does: seeded by the step, with the penalty, and told of every step."""
        optimizer = torch.optim.SGD(trainable(loaded.module).values(), lr=0.01)
        for step in range(start, stop):
            torch.manual_seed(step)
            loss, penalty = self._pass(attached, loaded, task)
            optimizer.zero_grad()
            (loss if penalty is None else loss + penalty).backward()
            torch.nn.utils.clip_grad_norm_(trainable(loaded.module).values(), 1.0)
            optimizer.step()
            attached.on_step_end(step + 1)


def _weights_to_keep(attached: Attached, loaded: LoadedModel) -> dict[str, Tensor]:
    """Return copies of the weights that would be kept."""
    with attached.averaged_weights():
        return copies(state_tensors(loaded.module))
