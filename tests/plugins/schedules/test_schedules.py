"""Schedules are pure functions of the step."""

import math
import types
from itertools import pairwise

import pytest
import torch
from expected import raises

from ftengine import Recipe, fine_tune, hookimpl, registry_of
from ftengine.api import Schedule
from ftengine.errors import PluginError, RecipeError, UnknownName
from ftengine.run.recipe import TrainSection
from ftengine.training.steps import Steps, plan_steps

INSTALLED = [entry.name for entry in registry_of().entries("schedule")]
FALLING = ["cosine", "linear", "wsd"]


def rates(spec, steps=50, warmup=0.0):
    """Return the factors of a run."""
    schedule = registry_of().build("schedule", spec, "train.schedule")
    planned = plan_steps(steps, TrainSection(epochs=1, batch_size=1, warmup=warmup))
    return [planned.factor(schedule, step) for step in range(planned.total)]


@pytest.mark.parametrize("schedule", INSTALLED)
def test_rates_grow_to_the_peak_and_never_reach_zero_before_the_end(schedule):
    found = rates(schedule, 50, warmup=5)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5] == 1.0
    assert all(rate > 0 for rate in found)
    assert all(a >= b for a, b in pairwise(found[5:]))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rates_equal_those_of_transformers(schedule):
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    peer = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}[schedule]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    peers = peer(optimizer, 0, 40)
    for rate in rates(schedule, 40):
        assert rate == pytest.approx(peers.get_last_lr()[0])
        optimizer.step()
        peers.step()


@pytest.mark.parametrize("schedule", FALLING)
def test_a_floor_is_what_the_rate_falls_to(schedule):
    found, plain = rates({"name": schedule, "floor": 0.25}), rates(schedule)
    assert found == pytest.approx([0.25 + 0.75 * rate for rate in plain])


@pytest.mark.parametrize(("decay", "start"), [(0.2, 40), (15, 35), (1000, 5)])
def test_wsd_stays_at_the_peak_until_its_decay(decay, start):
    found = rates({"name": "wsd", "decay": decay}, 50, warmup=5)
    assert found[5 : start + 1] == [1.0] * (start + 1 - 5)
    assert all(a > b for a, b in pairwise(found[start:]))


def plugin_of(cls):
    plugin = types.ModuleType("mine")
    plugin.ftengine_schedules = hookimpl(lambda: [cls])
    plugin.ftengine_schedules.__name__ = "ftengine_schedules"
    return registry_of({"mine": plugin})


class Broken(Schedule):
    """Return no rate."""

    name = "broken"

    def factor(self, step, steps, warmup):
        return -1.0 if step == 2 else math.nan


@pytest.fixture
def content(bert_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "match {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(16)))
    return {
        "model": {"source": str(bert_folder)},
        "task": "text-classification",
        "data": {"train": str(rows), "validation": None},
        "strategy": "lora",
        "train": {"max_steps": 4, "learning_rate": 0.5, "batch_size": 4, "precision": "float32", "warmup": 2},
        "evaluation": {"resamples": 100, "training_sample": None},
        "output": str(tmp_path / "run"),
    }


class Thousand(Broken):
    """Return a thousand times the peak."""

    def factor(self, step, steps, warmup):
        return 1000.0


def test_a_factor_above_the_peak_is_refused():
    with pytest.raises(PluginError, match=r"factor\(\) returned 1000\.0; "):
        Steps(4, 4, 0, 1).factor(Thousand(), 1)


def test_what_is_no_rate_names_the_schedule(content):
    content["train"]["schedule"] = "broken"
    with raises(PluginError, "'broken'", "-1.0", "step 2 of 4"):
        fine_tune(Recipe.make(content), registry=plugin_of(Broken))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("cosin", UnknownName, "'cosine'"),
        ({"name": "wsd", "shape": "cubic"}, RecipeError, "train.schedule.shape"),
        ({"name": "linear", "floor": 1}, RecipeError, "train.schedule.floor"),
    ],
)
def test_wrong_schedules_are_refused_before_anything_loads(content, spec, error, message):
    content["train"]["schedule"] = spec
    content["model"]["source"] = "nowhere"
    with raises(error, message):
        fine_tune(Recipe.make(content))
