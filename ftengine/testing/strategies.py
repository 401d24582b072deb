"""Checks of strategies: what they prepare, train, save and load."""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ftengine import api
from ftengine.equivalence import LEAST_EFFECT, REORDERED, differing, distance
from ftengine.errors import RecipeError
from ftengine.model import state_tensors, trainable
from ftengine.model.modes import hooks
from ftengine.model.saving import load_part, save_part
from ftengine.parallel.precision import widened_by
from ftengine.plugins.attribution import json_mapping
from ftengine.run.directory import TRAINED
from ftengine.run.recipe import TrainSection
from ftengine.testing.checks import require_passed, results_of, run_checks, skip
from ftengine.testing.merging import MergeChecks
from ftengine.testing.regularizers import RegularizerChecks
from ftengine.testing.samples import fixture, on_meta
from ftengine.testing.values import (
    copies,
    explained,
    in_bfloat16,
    require_meta,
    without_pickles,
    without_values,
)
from ftengine.training.modes import frozen, train_mode
from ftengine.training.optimizer import optimizer_state, restore_optimizer
from ftengine.training.optimizer_step import given_groups, groups_of
from ftengine.training.regularizing import own_regularizers

STEPS = 5
HALF = 1
"""Steps after which a run is interrupted that has twice as many."""

RUN = 100
"""Steps of the run that a regularizer is brought for; its checks take the first few."""


def check_strategy(
    make: Callable[[], api.Strategy],
    load: Callable[[], api.LoadedModel],
    batch: api.Batch,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check a strategy on a small model.

    Args:
        make: returns a fresh strategy, e.g. its class.
        load: returns a new copy of the same small transformers model in each call, such as `Fixture.load`.
        batch: the model's inputs with labels, as arguments of its forward.
        expected_failed_checks: names of checks that fail, with reasons.

    Raises:
        AssertionError: names every check that failed, or passed though it was expected to fail.
    """
    run_checks(StrategyChecks(make, load, batch), expected_failed_checks)


@dataclass
class StrategyChecks(MergeChecks):
    """Checks of a strategy on one model, those of merging included."""

    def something_trains(self) -> None:
        _, loaded = self._prepared()
        assert trainable(loaded.module), (
            "no parameter requires a gradient after prepare: set requires_grad on trained parameters, or raise "
            "NoMatch (ftengine.errors) if it finds nothing to train in a model"
        )

    def prepare_leaves_the_base_as_it_is(self) -> None:
        base = self.load()
        before = {name: (tensor, tensor.detach().clone()) for name, tensor in base.module.state_dict().items()}
        outputs = self._outputs(base)
        _, loaded = self._new(base)
        current = list(loaded.module.state_dict().values())
        changed = [name for name, (tensor, values) in before.items() if not _is_among(tensor, values, current)]
        # Some start by moving a part of a weight into what they add, which leaves the outputs as they were.
        moved = bool(changed) and distance(self._outputs(loaded), outputs) > REORDERED
        assert not moved, (
            f"prepare changes the values of {changed[0]!r} and thereby the outputs before any training: do not "
            "change the base's weights; add trained parameters beside them"
        )

    def frozen_weights_do_not_move(self) -> None:
        strategy, loaded = self._new()
        frozen = copies({name: p for name, p in loaded.module.named_parameters() if not p.requires_grad})
        self._train(strategy, loaded, 1)
        after = dict(loaded.module.named_parameters())
        moved = differing(frozen, after)
        assert not moved, f"{moved[0]} changed in a step, although it does not require a gradient"
        graded = [name for name in frozen if after[name].requires_grad or after[name].grad is not None]
        assert not graded, (
            f"after a step {graded[0]} has or requires a gradient, although it did not require one after prepare: "
            "freeze parameters in `prepare`, and compute no gradients for frozen parameters"
        )

    def groups_hold_each_trainable_parameter_once(self) -> None:
        strategy, loaded = self._new()
        groups_of(strategy, loaded.module, TrainSection.model_validate({"weight_decay": 0.1}))

    def a_seed_decides_what_it_prepares(self) -> None:
        first_module, other = (self._new()[1].module for _ in "ab")
        trained = [trainable(module).keys() for module in (first_module, other)]
        assert trained[0] == trained[1], "two preparations leave different parameters to train"
        first, second = ({**dict(x.named_parameters()), **dict(x.named_buffers())} for x in (first_module, other))
        drawn = differing(first, second)
        assert not drawn, f"{drawn[0]} starts differently with the same seed: use only torch's generator"

    def a_seed_decides_a_training_pass(self) -> None:
        _, loaded = self._new()
        train_mode(loaded.module)
        logits = []
        for _ in "ab":
            torch.manual_seed(1)
            with torch.no_grad():
                logits.append(loaded.module(**self.batch).logits)
        assert logits[0].equal(logits[1]), (
            "two passes in training mode differ with the same seed: use only torch's global generator for dropout, "
            "and store nothing between passes"
        )

    def it_trains_in_bfloat16(self) -> None:
        base = {path: (type(part), hooks(part)) for path, part in self.load().module.named_modules()}
        strategy, loaded = self._new()
        own = [(path, x) for path, x in loaded.module.named_modules() if base.get(path) != (type(x), hooks(x))]
        advice = "return x's dtype from a layer that gets x"
        with in_bfloat16(loaded.module):
            wide = widened_by(own, lambda: loaded.module.eval()(**self.batch))
            assert not wide, f"{wide[0]!r} makes float32 of a bfloat16 input, which the next layer may refuse: {advice}"
            with explained("a step in bfloat16, what is frozen in it and under autocast, fails", advice):
                self._train(strategy, loaded, 1)
                assert bool(torch.isfinite(self._outputs(loaded)).all()), "outputs are not finite"

    def a_model_without_values_is_prepared_alike(self) -> None:
        _, loaded = self._new()
        with without_values("prepare"):
            _, skeleton = self._new(on_meta(self.load()))
        shapes = [{n: tuple(p.shape) for n, p in trainable(x.module).items()} for x in (loaded, skeleton)]
        assert shapes[0] == shapes[1], "on the meta device other parameters train"
        require_meta(skeleton.module)

    def matched_modules_exist_and_train(self) -> None:
        strategy, loaded = self._new()
        matches, modules = strategy.matches(), dict(loaded.module.named_modules())
        if not matches:
            skip("matches() tells nothing")
        for pattern, paths in matches.items():
            assert paths, f"matches() has the pattern {pattern!r} without a module; raise NoMatch in prepare instead"
            # One that goes by parameters may name those.
            unknown = sorted(set(paths) - modules.keys() - dict(loaded.module.named_parameters()).keys())
            assert not unknown, f"matches() names {unknown[0]!r} for {pattern!r}, which is not a module of the model"
            trains = any(p.requires_grad for path in paths if path in modules for p in modules[path].parameters())
            # A pattern may freeze what it names, where other parts of the base train.
            freezes = bool(loaded.pretrained & trainable(loaded.module).keys())
            assert trains or freezes, (
                f"matches() names {paths[0]!r} for {pattern!r}, and no parameter of the modules that it names requires "
                "a gradient: name the modules that train"
            )

    def training_moves_the_outputs(self) -> None:
        strategy, loaded = self._new()
        if not _own(loaded):
            skip("it trains a new head alone")
        before = self._outputs(loaded)
        self._train(strategy, loaded, STEPS)
        _copy_new_modules(self.load(), loaded)  # a new head learns under every strategy
        moved = distance(self._outputs(loaded), before)
        assert moved >= LEAST_EFFECT, (
            f"{STEPS} steps with a learning rate of 0.01 change the outputs by {moved:.2g} of their size, less than "
            f"{LEAST_EFFECT:g}: the trained parameters have hardly any effect. Check their scale and use"
        )

    def a_copy_is_independent(self) -> None:
        _, loaded = self._new()
        duplicate = dataclasses.replace(loaded, module=copy.deepcopy(loaded.module))
        before, own = self._outputs(loaded), _own(duplicate)
        with torch.no_grad():
            for parameter in own.values():
                parameter.add_(1.0)
        advice = "hooks and functions must reach parameters through the module that they are called with"
        changed = not own or not self._outputs(duplicate).equal(before)
        assert changed, f"a copy (copy.deepcopy) of the prepared model does not use its own parameters: {advice}"
        assert self._outputs(loaded).equal(before), f"changing a copy of the prepared model changes the model: {advice}"

    def saved_and_loaded_outputs_are_equal(self) -> None:
        strategy, loaded = self._new()
        self._train(strategy, loaded, 1)
        after = self._outputs(loaded)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / TRAINED
            place.mkdir()
            save_part(strategy, loaded, place)
            other, again = self._new()
            with without_pickles():
                load_part(other, again, place)
            _copy_new_modules(loaded, again)
            difference = (self._outputs(again) - after).abs().max()
        assert difference == 0, (
            f"outputs differ by {difference:.3g} after save and load into a fresh model: save and load all parameters "
            "that require a gradient"
        )

    def a_resumed_run_is_the_uninterrupted_one(self) -> None:
        strategy, loaded = self._new()
        optimizer = self._optimizer(strategy, loaded)
        self._steps(strategy, loaded, optimizer, 0, HALF)
        weights = copies(state_tensors(loaded.module))
        slots, content = optimizer_state(loaded.module, optimizer)
        slots = copies(slots)
        self._steps(strategy, loaded, optimizer, HALF, 2 * HALF)
        other, again = self._new()
        _copy_new_modules(self.load(), again)
        with torch.no_grad():
            for name, tensor in state_tensors(again.module).items():
                tensor.copy_(weights[name])
        optimizer = self._optimizer(other, again)
        restore_optimizer(again.module, optimizer, slots, content)
        self._steps(other, again, optimizer, HALF, 2 * HALF)
        lost = differing(state_tensors(loaded.module), state_tensors(again.module))
        same = not lost and self._outputs(loaded).equal(self._outputs(again))
        assert same, (
            f"a run that is interrupted after step {HALF} and resumed ends with another "
            f"{lost[0] if lost else 'output'}: checkpoints hold only a strategy's trained parameters, so store "
            "nothing else between steps, or put it into its regularizer"
        )

    def what_freezes_by_step_trains(self) -> None:
        strategy, loaded = self._new()
        if not api.overrides(strategy, "frozen_parameters"):
            skip("it freezes nothing by step")
        for step in range(4):
            frozen_ids = [set(map(id, strategy.frozen_parameters(loaded.module, step, 4, 2))) for _ in "ab"]
            assert frozen_ids[0] == frozen_ids[1], f"a second call for step {step} returns other frozen parameters"
            other = frozen_ids[0] - {id(p) for p in loaded.module.parameters() if p.requires_grad}
            assert not other, f"{len(other)} parameters frozen in step {step} never train"

    def what_it_brings_regularizes(self) -> None:
        if not api.overrides(self.make(), "regularizer"):
            skip("it brings no regularizer")
        prepared: list[api.Strategy] = []

        def load() -> api.LoadedModel:
            strategy, loaded = self._new()
            prepared.append(strategy)
            return loaded

        def brought() -> api.Regularizer:
            return own_regularizers(prepared[-1], RUN)[0]

        head = load().head
        try:
            brought()
            task = fixture(head).task
        except (RecipeError, LookupError) as error:
            skip(str(error))
        require_passed(results_of(RegularizerChecks(brought, task, load, self.batch), None))

    def loading_options_are_its_own(self) -> None:
        strategy, _ = self._new()
        if not api.overrides(strategy, "loading_options"):
            skip("it is reopened with its own options")
        type(strategy.config).model_validate(json.loads(json.dumps(strategy.loading_options())))

    def environment_is_json(self) -> None:
        strategy, _ = self._new()
        if not api.overrides(strategy, "environment"):
            skip("it reports no environment")
        json_mapping(strategy, "environment", strategy.environment())

    def _optimizer(self, strategy: api.Strategy, loaded: api.LoadedModel) -> torch.optim.Optimizer:
        return torch.optim.AdamW(given_groups(strategy, loaded.module, 0.01, 0.1))

    def _steps(
        self, strategy: api.Strategy, loaded: api.LoadedModel, optimizer: torch.optim.Optimizer, start: int, stop: int
    ) -> None:
        """Train as the loop does: seeded by the step, without what is frozen in it."""
        for step in range(start, stop):
            torch.manual_seed(step)
            with frozen(strategy.frozen_parameters(loaded.module, step, 2 * HALF, HALF)):
                train_mode(loaded.module)
                optimizer.zero_grad()
                loaded.module(**self.batch).loss.backward()
            optimizer.step()


def _own(loaded: api.LoadedModel) -> dict[str, nn.Parameter]:
    """Return what trains beside the modules that were newly initialised."""
    new = tuple(f"{path}." for path in loaded.new_modules)
    return {name: p for name, p in trainable(loaded.module).items() if not name.startswith(new)}


def _copy_new_modules(loaded: api.LoadedModel, again: api.LoadedModel) -> None:
    """Give a reopened model the modules that were newly initialised, which the engine saves and loads by itself."""
    for path in loaded.new_modules:
        again.module.get_submodule(path).load_state_dict(loaded.module.get_submodule(path).state_dict())


def _is_among(tensor: Tensor, values: Tensor, others: list[Tensor]) -> bool:
    """Return whether a tensor has the values that it had, or another of the model has them."""
    if any(tensor.data_ptr() == candidate.data_ptr() for candidate in others):
        return tensor.equal(values)
    return any(candidate.shape == values.shape and candidate.equal(values) for candidate in others)
