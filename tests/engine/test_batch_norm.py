"""A ResNet trained on images: what its BatchNorm statistics do over a whole run, a resume, and two processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

from ftengine import Recipe, fine_tune, load_run
from ftengine.model import read_tensors
from ftengine.training.loop import Trainer

PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 16}, "crop_pct": 1.0,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """40 images each of dark and of light noise."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 90)):
        (folder / label).mkdir()
        for i in range(40):
            pixels = rng.integers(low, low + 160, (16, 16, 3)).astype("uint8")
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


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
                "evaluation": {"resamples": 100},
                "output": str(tmp_path / name),
            }
        )

    return build


def tensors(folder):
    return read_tensors(folder / "model.safetensors")


def statistics(folder):
    return {name: tensor for name, tensor in tensors(folder).items() if "running" in name}


def test_statistics_stand_still_and_the_model_learns_all_the_same(image_recipe, resnet):
    run = fine_tune(image_recipe("run", {}))
    assert run.evaluation["tuned"]["accuracy"]["value"] > run.evaluation["base"]["accuracy"]["value"]
    base = statistics(resnet)
    assert base
    assert all(torch.equal(tensor, base[name]) for name, tensor in statistics(run.trained).items())


def test_with_still_statistics_accumulated_parts_equal_the_whole_batch(image_recipe):
    settings = {"max_steps": 4, "keep_best": False}
    whole = fine_tune(image_recipe("whole", {}, **settings))
    parts = fine_tune(image_recipe("parts", {}, batch_size=2, accumulate=4, **settings))
    losses = [[line["loss"] for line in run.metrics if "loss" in line] for run in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # float32 sums in another order


def test_trained_statistics_survive_a_resume_and_open_again(image_recipe, resnet, monkeypatch):
    strategy = {"batch_norm": "train", "layer_decay": 0.8, "unfreeze_every": "even"}
    whole = fine_tune(image_recipe("whole", strategy, checkpoint_every=2))
    base = statistics(resnet)
    assert not any(torch.equal(tensor, base[name]) for name, tensor in statistics(whole.trained).items())
    recipe, step = image_recipe("resumed", strategy, checkpoint_every=2), Trainer.step

    def dying(self, *args):
        if self.progress.step == 7:
            raise KeyboardInterrupt
        step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(recipe)
    resumed = fine_tune(recipe, resume=True)
    assert (resumed.trained / "model.safetensors").read_bytes() == (whole.trained / "model.safetensors").read_bytes()
    assert load_run(resumed.path).evaluate()["tuned"] == whole.evaluation["tuned"]


def test_two_processes_keep_the_mean_of_their_statistics(image_recipe, tmp_path):
    recipe = image_recipe("two", {"batch_norm": "train"}, batch_size=4, max_steps=1, keep_best=False)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.resolved()))
    script = tmp_path / "child.py"
    script.write_text(
        "import json, pathlib\n"
        "from ftengine import Recipe, fine_tune\n"
        "from ftengine.training import loop\n"
        "share = loop.share_statistics\n"
        "def seen(accelerator, module):\n"
        "    name = 'resnet.embedder.embedder.normalization.running_mean'\n"
        "    before = module.get_buffer(name).tolist()\n"
        "    share(accelerator, module)\n"
        f"    file = pathlib.Path({str(tmp_path)!r}) / f'seen{{accelerator.process_index}}.json'\n"
        "    file.write_text(json.dumps([before, module.get_buffer(name).tolist()]))\n"
        "loop.share_statistics = seen\n"
        f"fine_tune(Recipe.make(json.loads(pathlib.Path({str(tmp_path / 'recipe.json')!r}).read_text())))\n"
    )
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        timeout=120,
    )
    (before, after), (other_before, other_after) = (
        json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(2)
    )
    assert before != other_before
    assert after == other_after == pytest.approx(np.mean([before, other_before], axis=0))
    saved = statistics(load_run(tmp_path / "two").trained)
    assert saved["resnet.embedder.embedder.normalization.running_mean"].tolist() == after
