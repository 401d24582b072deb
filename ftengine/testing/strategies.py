"""Checks of strategies."""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ftengine.api import Batch, FreezesByStep, LoadedModel, Merges, Reopens, Strategy
from ftengine.errors import NotMergeable
from ftengine.model import trainable
from ftengine.testing.checks import methods, run_checks


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
    run_checks(methods(_StrategyChecks(make, load, batch)), expected_failed_checks)


class _StrategyChecks:
    def __init__(self, make: Callable[[], Strategy], load: Callable[[], LoadedModel], batch: Batch) -> None:
        self._make, self._load, self._batch = make, load, batch

    def something_trains(self) -> None:
        _, loaded = self._prepared()
        assert any(p.requires_grad for p in loaded.module.parameters()), "no parameter requires a gradient"

    def frozen_weights_do_not_move(self) -> None:
        strategy, loaded = self._prepared()
        frozen = {n: p.detach().clone() for n, p in loaded.module.named_parameters() if not p.requires_grad}
        self._step(strategy, loaded)
        now = dict(loaded.module.named_parameters())
        moved = [name for name, before in frozen.items() if not torch.equal(before, now[name])]
        assert not moved, f"{moved[0]} moved in a step"

    def groups_hold_each_trainable_parameter_once(self) -> None:
        strategy, loaded = self._prepared()
        given = [id(p) for group in strategy.param_groups(loaded.module, 0.01, 0.1) for p in group["params"]]
        wanted = [id(p) for p in trainable(loaded.module).values()]
        assert sorted(given) == sorted(wanted), f"{len(given)} in groups, {len(wanted)} require a gradient"

    def a_seed_decides_what_it_prepares(self) -> None:
        first, second = (trainable(self._prepared()[1].module) for _ in "ab")
        assert first.keys() == second.keys(), "two preparations leave different parameters to train"
        differing = [name for name in first if not first[name].equal(second[name])]
        assert not differing, f"{differing[0]} starts differently though the seed is the same"

    def a_model_without_values_is_prepared_alike(self) -> None:
        _, loaded = self._prepared()
        strategy, skeleton = self._make(), _on_meta(self._load())
        strategy.prepare(skeleton)
        shapes = [{n: tuple(p.shape) for n, p in trainable(x.module).items()} for x in (loaded, skeleton)]
        assert shapes[0] == shapes[1], "on the meta device other parameters train"
        real = [name for name, p in skeleton.module.named_parameters() if not p.is_meta]
        assert not real, f"{real[0]} is not on the meta device, as the model is"

    def a_copy_is_independent(self) -> None:
        _, loaded = self._prepared()
        before, duplicate = self._outputs(loaded), copy.deepcopy(loaded.module)
        with torch.no_grad():
            for parameter in trainable(duplicate).values():
                parameter.add_(1.0)
        assert self._outputs(loaded).equal(before), "changing a copy of the model changes the model"

    def saved_and_loaded_outputs_are_equal(self) -> None:
        strategy, loaded = self._prepared()
        before = self._outputs(loaded)
        self._step(strategy, loaded)
        after = self._outputs(loaded)
        assert not before.equal(after), "a step with a learning rate of 0.01 changes no output"
        with tempfile.TemporaryDirectory() as folder:
            strategy.save(loaded, Path(folder))
            other, again = self._prepared()
            other.load(again, Path(folder))
            difference = (self._outputs(again) - after).abs().max()
        assert difference == 0, f"outputs differ by {difference:.3g} after save and load"

    def merging_keeps_the_outputs(self) -> None:
        strategy, loaded = self._prepared()
        if not isinstance(strategy, Merges):
            return
        try:
            strategy.check_merge()
        except NotMergeable:
            return
        self._step(strategy, loaded)
        before = self._outputs(loaded)
        strategy.merge(loaded)
        difference = (self._outputs(loaded) - before).norm() / before.norm()
        assert difference < 1e-4, f"merging changes outputs by {difference:.3g} of their size"

    def what_freezes_by_step_trains(self) -> None:
        strategy, loaded = self._prepared()
        if not isinstance(strategy, FreezesByStep):
            return
        for step in range(4):
            asked = [set(map(id, strategy.frozen(loaded.module, step, 4, 2))) for _ in "ab"]
            assert asked[0] == asked[1], f"what is frozen in step {step} changes when it is asked again"
            other = asked[0] - {id(p) for p in loaded.module.parameters() if p.requires_grad}
            assert not other, f"{len(other)} parameters frozen in step {step} never train"

    def reopened_options_are_its_own(self) -> None:
        strategy, _ = self._prepared()
        if isinstance(strategy, Reopens):
            type(strategy.config).model_validate(json.loads(json.dumps(strategy.reopened())))

    def _prepared(self) -> tuple[Strategy, LoadedModel]:
        torch.manual_seed(0)
        strategy, loaded = self._make(), self._load()
        strategy.prepare(loaded)
        return strategy, loaded

    def _outputs(self, loaded: LoadedModel) -> Tensor:
        with torch.no_grad():
            return loaded.module.eval()(**self._batch).logits

    def _step(self, strategy: Strategy, loaded: LoadedModel) -> None:
        optimizer = torch.optim.AdamW(strategy.param_groups(loaded.module, 0.01, 0.1))
        loaded.module.train()(**self._batch).loss.backward()
        optimizer.step()


def _on_meta(loaded: LoadedModel) -> LoadedModel:
    """Return a model with every tensor on the meta device, tied ones still tied."""
    tensors = [*loaded.module.parameters(), *loaded.module.buffers()]
    memo = {id(x): nn.Parameter(x.to("meta")) if isinstance(x, nn.Parameter) else x.to("meta") for x in tensors}
    return dataclasses.replace(loaded, module=copy.deepcopy(loaded.module, memo))
