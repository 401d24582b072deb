"""A ResNet trained on images: what its BatchNorm statistics do over a whole run, a resume, and two processes."""

import json

import pytest
import torch
from rows import photos
from runs import interrupt
from transformers import ResNetConfig, ResNetForImageClassification

from ftengine import Recipe, fine_tune, load_run
from ftengine.model import read_tensors

PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 16}, "crop_pct": 1.0,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """40 images each of dark and of light noise."""
    return photos(tmp_path_factory.mktemp("images") / "photos", 40, side=16)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "resnet"
    torch.manual_seed(0)
    config = ResNetConfig(depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8, layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture
def image_recipe(images, resnet, tmp_path):
    def build(name, strategy, **train):
        return Recipe.make(
            {
                "model": {"source": str(resnet)},
                "task": "image-classification",
                "data": {"train": str(images), "validation": 0.2, "test": 0.2},
                "strategy": {"name": "full", **strategy},
                "train": {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "precision": "float32", **train},
                "evaluation": {"resamples": 100, "training_sample": None},
                "output": str(tmp_path / name),
            }
        )

    return build


def tensors(folder):
    return read_tensors(folder / "model.safetensors")


def statistics(folder):
    return {name: tensor for name, tensor in tensors(folder).items() if "running" in name}


@pytest.mark.slow
def test_statistics_stand_still_and_the_model_learns_all_the_same(image_recipe, resnet):
    run = fine_tune(image_recipe("run", {}))
    assert run.evaluation["tuned"]["accuracy"]["value"] > run.evaluation["base"]["accuracy"]["value"]
    base = statistics(resnet)
    assert base
    assert all(torch.equal(tensor, base[name]) for name, tensor in statistics(run.trained).items())


@pytest.mark.slow
def test_trained_statistics_survive_a_resume_and_open_again(image_recipe, resnet):
    strategy = {"batch_norm": "train", "layer_decay": 0.8, "unfreeze_every": "even"}
    whole = fine_tune(image_recipe("whole", strategy, checkpoint_every=2))
    base = statistics(resnet)
    assert not any(torch.equal(tensor, base[name]) for name, tensor in statistics(whole.trained).items())
    recipe = image_recipe("resumed", strategy, checkpoint_every=2)
    interrupt(recipe, after=7)
    resumed = fine_tune(recipe, resume=True)
    assert (resumed.trained / "model.safetensors").read_bytes() == (whole.trained / "model.safetensors").read_bytes()
    assert load_run(resumed.path).evaluate()["tuned"] == whole.evaluation["tuned"]
