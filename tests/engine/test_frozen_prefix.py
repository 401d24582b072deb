"""Blocks below the lowest trained one: computed once an example where that changes nothing, else in every epoch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import Heard, curve
from torch import nn

from ftengine import fine_tune
from ftengine.errors import RecipeError
from ftengine.run.recipe import TrainSection
from ftengine.training.frozen_prefix import FrozenPrefix, frozen_blocks, frozen_prefix
from ftengine.training.steps import plan_steps

TOP = {"name": "lora", "rank": 4, "dropout": 0.1, "targets": r".*layers?\.1\..*(q_proj|down_proj|query)"}


@pytest.fixture
def given(monkeypatch):
    """Note of how many examples the model was given what frozen blocks had made, in each pass."""
    sizes = []
    real = FrozenPrefix._given
    monkeypatch.setattr(FrozenPrefix, "_given", lambda self, hidden: sizes.append(len(hidden)) or real(self, hidden))
    return sizes


def test_a_run_that_takes_them_again_has_the_curve_of_one_that_computes_them(chat_recipe, tmp_path, given):
    top, heard = {"strategy": TOP, "train__batch_tokens": 400}, Heard()
    off = fine_tune(chat_recipe(**top, train__reuse_frozen=False, output=str(tmp_path / "off")))
    assert not given
    on = fine_tune(chat_recipe(**top, output=str(tmp_path / "on")), listener=heard)
    assert sum(given[1:]) == 32  # the second epoch, after the first batch, to see that it may be done
    assert any(
        text.startswith("1 block below the lowest trained one is computed once an example") for text in heard.said
    )
    for ours, theirs in zip(curve(on.path), curve(off.path), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)  # padded to other lengths, so rounded at other places


def test_packed_examples_have_the_curve_of_padded_ones_and_their_frozen_blocks_are_computed_each_time(
    chat_recipe, tmp_path, given
):
    runs = []
    # At 60 tokens most micro-batches hold one example, which looks the same packed and padded.
    for packing, limits in ((False, [None]), (True, [None, 60])):
        for limit in limits:
            task, output = {"name": "causal-lm", "packing": packing}, str(tmp_path / f"{packing}{limit}")
            top = {**TOP, "dropout": 0.0}
            runs.append(fine_tune(chat_recipe(strategy=top, task=task, train__batch_tokens=limit, output=output)))
    for run in runs[1:]:
        for packed, padded in zip(curve(run.path), curve(runs[0].path), strict=True):
            assert packed == pytest.approx(padded, rel=1e-4)
    with pytest.raises(RecipeError, match=r"task.packing is true.*as the strategy prepared it"):
        fine_tune(chat_recipe(task={"name": "causal-lm", "packing": True}, strategy={"name": "prompt"}))


def test_dropout_and_noise_in_frozen_blocks_are_drawn_anew_in_every_epoch(chat_recipe, label_recipe, tmp_path, given):
    fine_tune(label_recipe(strategy=TOP, train__max_steps=8, train__epochs=2))
    noise = {"regularize": [{"name": "neftune"}], "output": str(tmp_path / "noise")}
    fine_tune(chat_recipe(strategy=TOP, train__max_steps=7, **noise))
    assert not given


def stack(trained):
    module = nn.Sequential(nn.Embedding(9, 4), nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(3)]))
    module.requires_grad_(False)
    for part in trained:
        module[1][part].requires_grad_(True)
    return module


def test_blocks_up_to_the_lowest_that_trains_are_found():
    for trained, expected in (([], 3), ([2], 2), ([1, 2], 1), ([0, 2], 0)):
        module = stack(trained)
        assert frozen_blocks(module) == list(module[1])[:expected]
    two = nn.Module()
    two.encoder, two.decoder = stack([]), stack([2])
    assert not frozen_blocks(two)
    assert not frozen_blocks(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("section", "augmenters", "processes", "kept"),
    [
        ({}, [], 1, True),
        ({"reuse_frozen": False}, [], 1, False),
        ({"epochs": 1}, [], 1, False),
        ({"memory_limit": "1 GB"}, [], 1, False),
        ({}, ["case"], 1, False),
        ({}, [], 2, False),
    ],
)
def test_nothing_is_kept_where_it_would_not_be_used_again(section, augmenters, processes, kept):
    section = TrainSection(**section)
    setup = SimpleNamespace(
        section=section,
        accelerator=SimpleNamespace(num_processes=processes, device=torch.device("cpu")),
        train=SimpleNamespace(augmenters=augmenters, lengths=np.ones(16)),
        loaded=SimpleNamespace(module=stack([2])),
        strategy=None,
        task=SimpleNamespace(modality="text"),
        listener=Heard(),
    )
    assert (frozen_prefix(setup, plan_steps(16, section, processes)) is not None) == kept
