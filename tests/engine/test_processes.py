"""Two processes with half the batch each do what one process does with the whole."""

import json
import os
import subprocess
import sys

import pytest

from ftengine import fine_tune, load_run
from ftengine.model import read_tensors

CHILD = """
import sys, json
from ftengine import Recipe, fine_tune
fine_tune(Recipe.make(json.loads(sys.argv[1])))
"""


def in_two_processes(recipe, folder):
    """Train a recipe in two processes and return the finished run."""
    script = folder / "child.py"
    script.write_text(CHILD)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script),
         json.dumps(recipe.resolved())],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
    )  # fmt: skip
    return load_run(recipe.output)


def test_a_penalty_counts_once_over_two_processes(chat_recipe, tmp_path):
    settings = {"strategy": "full", "train__epochs": 1, "regularize": [{"name": "l2-sp", "alpha": 0.5}, "ema"]}
    one = fine_tune(chat_recipe(**settings, output=str(tmp_path / "one")))
    two = in_two_processes(chat_recipe(**settings, train__batch_size=4, output=str(tmp_path / "two")), tmp_path)
    for key in ("loss", "penalty"):
        curves = [[line[key] for line in run.metrics if key in line] for run in (one, two)]
        assert curves[1] == pytest.approx(curves[0], rel=1e-3, abs=1e-9)  # float32 sums in another order
        assert curves[0][-1] > 0


def test_two_processes_equal_one(chat_recipe, tmp_path):
    settings = {"strategy__dropout": 0.0, "train__epochs": 1, "evaluation__memorisation": {"examples": 4}}
    settings |= {"evaluation__generate": {"max_new_tokens": 2}}
    one = fine_tune(chat_recipe(**settings, output=str(tmp_path / "one")))
    run = in_two_processes(chat_recipe(**settings, train__batch_size=4, output=str(tmp_path / "two")), tmp_path)
    curves = [[line["loss"] for line in r.metrics if "loss" in line] for r in (one, run)]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)  # float32 sums in another order
    first, second = (read_tensors(r.trained / "adapter_model.safetensors") for r in (one, run))
    for name, tensor in first.items():
        assert (tensor - second[name]).abs().max() < 1e-3 * tensor.abs().max()
    for side in ("base", "tuned"):
        assert run.evaluation[side]["loss"]["value"] == pytest.approx(one.evaluation[side]["loss"]["value"], rel=1e-4)
        assert run.evaluation[side]["loss"]["n"] == one.evaluation[side]["loss"]["n"]
    changed = [r.directory.read_json("examples.json") for r in (one, run)]
    places = [[item["place"] for item in content["improved"]] for content in changed]
    assert len(places[0]) == len(places[1]) > 0
    assert all(item["base"] and item["tuned"] for item in changed[1]["improved"])
    memorised = [r.evaluation["probes"][0] for r in (one, run)]
    assert memorised[0]["examples"] == memorised[1]["examples"] == 4
    assert memorised[0]["tuned"].keys() == memorised[1]["tuned"].keys()
    assert run.evaluation["training"]["n"] == one.evaluation["training"]["n"]
