"""Checks of optimisers and of schedules of the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import Optimizer, Schedule
from ftengine.equivalence import differing
from ftengine.testing.checks import Checks, run_checks
from ftengine.testing.values import copies, explained
from ftengine.training.optimizer import build_optimizer, optimizer_state, restore_optimizer
from ftengine.training.steps import is_factor

STEPS, HALF = 6, 3
"""Steps of a run, and after how many of them it is interrupted."""

LONG = 100
"""Steps after which the loss of a small regression must be lower."""

DECAY = 0.1
"""Weight decay of matrices; vectors have none."""

LENGTHS = ((1, 0), (7, 6), (10, 0), (10, 3), (1_000, 30))
"""Runs on which schedules are checked: steps, and steps of warm-up."""


def check_optimizer(make: Callable[[], Optimizer], expected_failed_checks: Mapping[str, str] | None = None) -> None:
    """Check an optimiser on a small network of matrices, vectors and a convolution.

    Args:
        make: returns a fresh component.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    run_checks(OptimizerChecks(make), expected_failed_checks)


def check_schedule(make: Callable[[], Schedule], expected_failed_checks: Mapping[str, str] | None = None) -> None:
    """Check a schedule on runs of several lengths.

    Args:
        make: returns a fresh component.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    run_checks(ScheduleChecks(make), expected_failed_checks)


@dataclass
class OptimizerChecks(Checks):
    """Checks of an optimiser on a small network."""

    make: Callable[[], Optimizer]

    def it_builds_a_torch_optimiser_of_all_groups(self) -> None:
        build_optimizer(self.make(), _groups(_network()))

    def it_builds_on_the_meta_device(self) -> None:
        module = _network().to("meta")
        advice = "`ftengine plan` counts memory with such parameters, so read no values in it"
        with explained("build fails for parameters on the meta device", advice):
            self.make().build(_groups(module))

    def every_parameter_with_a_gradient_moves(self) -> None:
        module, optimizer = self._built()
        before = copies(module.state_dict())
        _train(module, optimizer, 0, 3)
        moved = differing(before, module.state_dict())
        still = [name for name in before if name not in moved]
        assert not still, f"three steps do not change {still[0]!r}, although it had gradients"

    def parameters_without_a_gradient_stay(self) -> None:
        module, optimizer = self._built()
        frozen = module.get_parameter("0.weight")
        frozen.requires_grad_(False)
        before = frozen.detach().clone()
        _train(module, optimizer, 0, 3)
        assert frozen.equal(before), "a parameter whose grad is None changes; skip it, as torch's optimisers do"

    def it_goes_by_the_learning_rate_of_its_groups(self) -> None:
        module, optimizer = self._built()
        _train(module, optimizer, 0, 2)
        before = copies(module.state_dict())
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        _train(module, optimizer, 2, 3)
        moved = differing(before, module.state_dict())
        assert not moved, (
            f"a step with a learning rate of 0 changes {moved[0]!r}: the engine sets param_groups[i]['lr'] before each "
            "step, and the step must use it"
        )

    def it_goes_by_the_weight_decay_of_its_groups(self) -> None:
        module, optimizer = self._built()
        before = copies(dict(module.named_parameters()))
        for _ in range(2):
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        for name, parameter in module.named_parameters():
            assert parameter.ndim > 1 or parameter.equal(before[name]), (
                f"two steps with gradients of 0 change {name!r}, whose group has a weight_decay of 0: use each "
                "group's own value"
            )
            assert parameter.ndim < 2 or parameter.norm() < before[name].norm(), (
                f"two steps with gradients of 0 do not change {name!r}, whose group has a weight_decay of "
                f"{DECAY:g}: train.weight_decay would have no effect"
            )

    def the_loss_falls(self) -> None:
        module, optimizer = self._built()
        before = float(_loss(module, 0).detach())
        for _ in range(LONG):
            optimizer.zero_grad()
            _loss(module, 0).backward()
            optimizer.step()
        after = float(_loss(module, 0).detach())
        assert after < before, f"the loss of a small regression goes from {before:.4g} to {after:.4g} in {LONG} steps"

    def a_resumed_run_is_the_uninterrupted_one(self) -> None:
        module, optimizer = self._built()
        _train(module, optimizer, 0, HALF)
        tensors, content = optimizer_state(module, optimizer)
        tensors, weights = copies(tensors), copies(module.state_dict())
        _train(module, optimizer, HALF, STEPS)
        again, other = self._built()
        again.load_state_dict(weights)
        restore_optimizer(again, other, tensors, content)
        _train(again, other, HALF, STEPS)
        assert not differing(module.state_dict(), again.state_dict()), (
            f"a run that is interrupted after {HALF} of {STEPS} steps and resumed ends with other weights: store "
            "all state in `state` or `param_groups` of the optimiser, which checkpoints hold"
        )

    def _built(self) -> tuple[nn.Sequential, torch.optim.Optimizer]:
        module = _network()
        return module, self.make().build(_groups(module))


@dataclass
class ScheduleChecks(Checks):
    """Checks of a schedule on runs of several lengths."""

    make: Callable[[], Schedule]

    def factors_are_numbers_from_0_to_1(self) -> None:
        for steps, warmup in LENGTHS:
            for step, factor in self._factors(steps, warmup).items():
                requirement = "it must be a number from 0 to 1, as train.learning_rate is the peak"
                assert is_factor(factor), f"factor({step}, {steps}, {warmup}) returns {factor!r}; {requirement}"

    def factors_depend_on_the_arguments_alone(self) -> None:
        schedule = self.make()
        for steps, warmup in LENGTHS:
            first = self._factors(steps, warmup, schedule)
            backwards = {step: schedule.factor(step, steps, warmup) for step in reversed(first)}
            fresh = self._factors(steps, warmup)
            differing = [step for step, factor in first.items() if not factor == backwards[step] == fresh[step]]
            assert not differing, (
                f"factor({differing[0]}, {steps}, {warmup}) depends on earlier calls, but a resumed run begins in the "
                "middle: compute it only from the arguments and the options"
            )

    def some_step_trains(self) -> None:
        for steps, warmup in LENGTHS[1:]:
            assert any(self._factors(steps, warmup).values()), f"all factors of {steps} steps are 0: nothing trains"

    def _factors(self, steps: int, warmup: int, schedule: Schedule | None = None) -> dict[int, float]:
        schedule = schedule or self.make()
        return {step: schedule.factor(step, steps, warmup) for step in range(warmup, steps)}


def _network() -> nn.Sequential:
    """Return a small network, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Conv1d(5, 4, 1), nn.Linear(8, 3))


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return two groups, matrices with weight decay and all else without, as strategies do."""
    kinds = [[p for p in module.parameters() if (p.ndim > 1) is is_matrix] for is_matrix in (True, False)]
    return [{"params": p, "lr": 0.01, "weight_decay": decay} for p, decay in zip(kinds, (DECAY, 0.0), strict=True)]


def _loss(module: nn.Module, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(8, 5, 6, generator=generator), torch.randn(8, 4, 3, generator=generator)
    return (module(inputs) - targets).square().mean()


def _train(module: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    for step in range(start, stop):
        torch.manual_seed(step)
        optimizer.zero_grad()
        _loss(module, step).backward()
        optimizer.step()
