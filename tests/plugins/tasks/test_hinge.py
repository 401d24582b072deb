"""A third party's loss of preferences trains like those of the box."""

import json
import types

import hinge
import pytest
import torch
from expected import raises
from runs import losses

from ftengine import Recipe, fine_tune, hookimpl, registry_of
from ftengine.errors import PluginError
from ftengine_builtins.tasks import Pairs, Preference, PreferenceConfig, PreferenceLoss


def test_an_added_loss_trains_and_reads_the_options_of_its_task(llama_folder, tmp_path):
    plugin = types.ModuleType("hinge")
    plugin.ftengine_tasks = hookimpl(lambda: [hinge.HingePreference])
    plugin.ftengine_tasks.__name__ = "ftengine_tasks"
    rows = [{"prompt": f"question {i}", "chosen": f"a red fox {i}", "rejected": f"no {i}"} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {
        "model": {"source": str(llama_folder)},
        "task": {"name": "hinge-preference", "beta": 0.3},
        "data": {"train": str(tmp_path / "pairs.jsonl"), "validation": None},
        "strategy": {"name": "lora", "dropout": 0.0},
        "train": {
            "max_steps": 3,
            "learning_rate": 0.01,
            "batch_size": 6,
            "precision": "float32",
            "schedule": "constant",
        },
        "evaluation": {"training_sample": None},
        "output": str(tmp_path / "run"),
    }
    run = fine_tune(Recipe.make(content), registry=registry_of({"hinge": plugin}))
    assert losses(run)[0] == pytest.approx(1.0)  # no margin yet
    assert losses(run)[-1] < 0.99


def task_of(body, config=PreferenceConfig):
    loss = type("Odd", (PreferenceLoss,), {"name": "odd", "__module__": "odd", **body})
    return type("OddTask", (Preference,), {"name": "odd-task", "losses": (loss, *Preference.losses), "Config": config})


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ({"los": lambda self, margin: margin}, ("'odd'", "'los'", "'loss'")),
        ({"width": 1.0, "__annotations__": {"width": float}}, ("'odd'", "'width'", "'odd-task'")),
    ],
)
def test_a_loss_that_would_not_do_what_its_author_means_is_refused(body, facts):
    with raises(PluginError, *facts):
        task_of(body)()


def test_a_loss_that_is_no_loss_of_each_pair_is_refused_by_name(monkeypatch):
    task = task_of({"loss": lambda self, margin: margin.mean()})()
    pairs = Pairs(*(torch.ones(3) for _ in range(6)))
    monkeypatch.setattr(task, "pairs", lambda model, batch: pairs)
    with raises(PluginError, "'odd'", "()", "(3,)"):
        task.loss(torch.nn.Linear(1, 1), {}, None)
