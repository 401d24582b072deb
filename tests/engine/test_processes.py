"""Two processes with half the batch each do what one process does with the whole, and go on from what others left."""

import json
import shutil

import numpy as np
import pytest
from processes import together, train
from rows import photos
from runs import Heard, interrupt, losses
from tiny import tiny_resnet

from ftengine import Recipe, fine_tune, load_run
from ftengine.model import read_tensors
from ftengine.run.evaluation_result import Examples

FREE = {"strategy__dropout": 0.0, "train__epochs": 1, "evaluation__memorisation": {"examples": 4}}
FREE |= {"evaluation__generate": {"max_new_tokens": 2}, "evaluation__answers": 7, "evaluation__training_sample": 9}
PENALISED = {"strategy": "full", "train__epochs": 1, "regularize": [{"name": "l2-sp", "alpha": 0.5}, "ema"]}
LOST = {"strategy__dropout": 0.0, "train__epochs": 3, "train__max_steps": 9, "train__checkpoint_every": 3}


def lose(recipe):
    """Train until the machines are lost, in the second epoch and after a checkpoint."""
    interrupt(Recipe.read(recipe), after=7)


def image_recipe(folder, output, batch_size):
    """One step of a ResNet whose BatchNorm statistics train."""
    return Recipe.make(
        {
            "model": {"source": str(folder / "resnet")},
            "task": "image-classification",
            "data": {"train": str(folder / "photos"), "validation": None},
            "strategy": {"name": "full", "batch_norm": "train"},
            "train": {"max_steps": 1, "batch_size": batch_size, "precision": "float32"},
            "output": output,
        }
    )


@pytest.fixture(scope="module")
def runs(build_chat_recipe, tmp_path_factory):
    """Three recipes, each trained in one process and in two, the first divided too: {name: (one, two)}."""
    folder = tmp_path_factory.mktemp("processes")
    tiny_resnet(folder / "resnet")
    photos(folder / "photos")

    def recipes(side, batch_size, accumulate=1):
        common = {"train__batch_size": batch_size, "train__accumulate": accumulate}
        return [
            build_chat_recipe(**FREE, **common, output=str(folder / f"free-{side}")),
            build_chat_recipe(**PENALISED, **common, output=str(folder / f"penalised-{side}")),
            image_recipe(folder, str(folder / f"images-{side}"), batch_size * accumulate),
        ]

    divided = build_chat_recipe(**FREE, train__batch_size=4, train__parallel="fsdp", output=str(folder / "divided-two"))
    files = [folder / f"{number}.yaml" for number in range(4)]
    for file, recipe in zip(files, [*recipes("two", 2, 2), divided], strict=True):
        file.write_text(json.dumps(recipe.resolved()))  # JSON is YAML
    one = [fine_tune(recipe) for recipe in recipes("one", 8)]
    together(folder, train, *map(str, files))
    names = ("free", "penalised", "images", "divided")
    return {name: (run, load_run(folder / f"{name}-two")) for name, run in zip(names, [*one, one[0]], strict=True)}


@pytest.mark.slow
def test_a_penalty_counts_once_over_two_processes(runs):
    for key in ("loss", "penalty"):
        curves = [[line[key] for line in run.metrics if key in line] for run in runs["penalised"]]
        assert curves[1] == pytest.approx(curves[0], rel=1e-3, abs=1e-9)  # float32 sums in another order
        assert curves[0][-1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["free", "divided"])
def test_two_processes_equal_one(runs, name):
    """Each with the whole model, or with a part of it, which tests/engine/test_fsdp.py is about."""
    one, run = runs[name]
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


@pytest.mark.slow
def test_two_processes_keep_the_mean_of_their_batchnorm_statistics(runs):
    """The mean over a batch is that of the means over its halves; deeper layers read what other statistics scaled."""
    name = "resnet.embedder.embedder.normalization.running_mean"
    one, two = (read_tensors(run.trained / "model.safetensors")[name].numpy() for run in runs["images"])
    assert np.abs(one).max() > 0
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_answer_the_prompts_that_people_read_between_them(runs):
    first, second = (Examples.read(run.directory).answers for run in runs["free"])
    assert len(first) == 7
    assert [(one.place, one.prompt, one.base) for one in second] == [(one.place, one.prompt, one.base) for one in first]
    assert all(one.tuned for one in second)


@pytest.mark.slow
def test_another_number_of_processes_goes_on_where_two_stood(build_chat_recipe, tmp_path):
    lost = build_chat_recipe(**LOST, train__batch_size=4, output=str(tmp_path / "lost"))
    (tmp_path / "lost.yaml").write_text(json.dumps(lost.resolved()))
    together(tmp_path, lose, str(tmp_path / "lost.yaml"))
    whole = losses(fine_tune(build_chat_recipe(**LOST, train__batch_size=8, output=str(tmp_path / "whole"))))
    for name in ("one", "three"):
        shutil.copytree(tmp_path / "lost", tmp_path / name)
    heard = Heard()
    one = fine_tune(lost.model_copy(update={"output": str(tmp_path / "one")}), resume=True, listener=heard)
    assert (
        "the run began with 2 processes and goes on with 1: a step keeps its 8 examples, in micro-batches of at most 4"
    ) in heard.said
    file = tmp_path / "three.yaml"
    file.write_text(json.dumps(lost.model_copy(update={"output": str(tmp_path / "three")}).resolved()))
    together(tmp_path, train_on, str(file), ranks=3)
    three = load_run(tmp_path / "three")
    for run in (one, three):
        assert losses(run) == pytest.approx(whole, rel=1e-4)  # float32 sums in another order
        assert [line["examples"] for line in run.metrics if "loss" in line] == [8] * 9
        assert run.directory.read_json("environment.json")["processes"] == 2


def train_on(recipe):
    train(recipe, resume=True)
