"""Checks of strategies."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ftengine.api import Batch, FreezesByStep, LoadedModel, Merges, Reopens, Strategy
from ftengine.errors import NotMergeable
from ftengine.testing.checks import Checks, run_checks


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
    run_checks(_strategy_checks(make, load, batch), expected_failed_checks)


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

    def merging_keeps_the_outputs() -> None:
        strategy, loaded = prepared()
        step(strategy, loaded)
        if not isinstance(strategy, Merges):
            return
        try:
            strategy.check_merge()
        except NotMergeable:
            return
        before = outputs(loaded)
        strategy.merge(loaded)
        difference = (outputs(loaded) - before).norm() / before.norm()
        assert difference < 1e-4, f"merging changes outputs by {difference:.3g} of their size"

    def what_freezes_by_step_trains() -> None:
        strategy, loaded = prepared()
        if not isinstance(strategy, FreezesByStep):
            return
        for step in range(4):
            asked = [set(map(id, strategy.frozen(loaded.module, step, 4, 2))) for _ in "ab"]
            assert asked[0] == asked[1], f"what is frozen in step {step} changes when it is asked again"
            other = asked[0] - {id(p) for p in loaded.module.parameters() if p.requires_grad}
            assert not other, f"{len(other)} parameters frozen in step {step} never train"

    def reopened_options_are_its_own() -> None:
        strategy, _ = prepared()
        if isinstance(strategy, Reopens):
            type(strategy.config).model_validate(json.loads(json.dumps(strategy.reopened())))

    yield "something_trains", something_trains
    yield "frozen_weights_do_not_move", frozen_weights_do_not_move
    yield "groups_hold_each_trainable_parameter_once", groups_hold_each_trainable_parameter_once
    yield "counts_are_the_same_each_time", counts_are_the_same_each_time
    yield "saved_and_loaded_outputs_are_equal", saved_and_loaded_outputs_are_equal
    yield "merging_keeps_the_outputs", merging_keeps_the_outputs
    yield "what_freezes_by_step_trains", what_freezes_by_step_trains
    yield "reopened_options_are_its_own", reopened_options_are_its_own
