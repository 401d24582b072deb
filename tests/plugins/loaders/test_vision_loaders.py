"""Image classifiers of timm and torchvision: what is read, what begins afresh, what is refused."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from expected import raises
from PIL import Image
from safetensors.torch import load_file, save_file

from ftengine import Recipe, fine_tune, load_run
from ftengine.api import Labels, LoadRequest
from ftengine.errors import SourceError
from ftengine.plugins.registry import Registry
from ftengine_builtins.loaders.timm import TimmLoader
from ftengine_builtins.loaders.torchvision import TorchvisionLoader
from ftengine_builtins.tasks.image_classification import ImageClassification

ABC, CAB, DE = (Labels("single", tuple(names)) for names in ("abc", "cab", "de"))
SMALL = {"timm": "test_resnet", "torchvision": "resnet18"}
"""A small model with BatchNorm of each library."""
LOADERS = {"timm": TimmLoader, "torchvision": TorchvisionLoader}
INSTALLED = [name for name in LOADERS if importlib.util.find_spec(name)]

pytestmark = pytest.mark.skipif(not INSTALLED, reason="neither timm nor torchvision is installed")


@pytest.fixture(params=INSTALLED, scope="module")
def library(request):
    return request.param


@pytest.fixture(scope="module")
def source(library):
    return f"{library}://{SMALL[library]}"


def loader(library, **options):
    return LOADERS[library](LOADERS[library].Config(**options))


def load(library, source, labels=ABC, *, skeleton=False, dtype="auto", seed=0, **options):
    torch.manual_seed(seed)
    request = LoadRequest(source, "image-classification", labels, dtype=dtype)
    made = loader(library, **options)
    return made.load_skeleton(request) if skeleton else made.load(request)


def save(loaded, folder):
    """Write a model as merging does."""
    from ftengine.model import save_model

    folder.mkdir()
    save_model(loaded.module, loaded.processor, folder)
    return folder


def logits(loaded):
    task = ImageClassification()
    with torch.no_grad():
        return task.raw_outputs(loaded.module.eval(), task.probe_batch(loaded))


@pytest.fixture(scope="module")
def base(library, source, tmp_path_factory):
    """A folder with random weights whose statistics are not those of a new model."""
    loaded = load(library, source, weights="random", image_size=32)
    loaded.module.train()
    with torch.no_grad():
        loaded.module(torch.rand(8, 3, 32, 32))
    return loaded, save(loaded, tmp_path_factory.mktemp(library) / "base")


# Where weights come from


def test_a_folder_comes_back_with_equal_outputs_and_statistics(library, base):
    first, folder = base
    again = load(library, str(folder))
    assert again.new_modules == ()
    assert again.module.state_dict().keys() == first.module.state_dict().keys()
    assert torch.equal(logits(first), logits(again))


def test_a_file_of_weights_has_no_labels_so_the_head_begins_afresh(library, source, base):
    first, folder = base
    again = load(library, source, weights=str(folder / "model.safetensors"), seed=1)
    assert again.new_modules == first.new_modules != ()
    inside = tuple(f"{name}." for name in again.new_modules)
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]) != name.startswith(inside), name


@pytest.mark.parametrize("labels", [DE, Labels("single", ("x", "y", "z"))])
def test_other_labels_get_a_fresh_head(library, base, labels):
    first, folder = base
    again = load(library, str(folder), labels)
    assert again.new_modules == first.new_modules or len(again.new_modules) == 1
    assert logits(again).shape == (4, len(labels.names))


def test_a_dtype_reaches_parameters_and_not_statistics(library, source):
    loaded = load(library, source, weights="random", dtype="bfloat16")
    assert {p.dtype for p in loaded.module.parameters()} == {torch.bfloat16}
    assert torch.bfloat16 not in {b.dtype for b in loaded.module.buffers()}


def test_the_library_s_own_weights_are_asked_for_by_name_alone(library, source, base, monkeypatch):
    first, folder = base
    asked = []
    weights = load_file(folder / "model.safetensors")

    def downloaded(self, architecture):
        asked.append(architecture)
        return weights

    monkeypatch.setattr(LOADERS[library], "downloaded", downloaded)
    load(library, source, weights="random")
    assert asked == []
    again = load(library, source, weights="library")
    assert asked == [SMALL[library]]
    assert again.new_modules == first.new_modules


def test_downloads_of_torchvision_are_read_as_weights_only(monkeypatch):
    models = pytest.importorskip("torchvision.models")
    seen = {}

    def get(self, **options):
        seen.update(options)
        return {}

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", get)
    loader("torchvision").downloaded("resnet18")
    assert seen["weights_only"] is True


# What is refused


def test_an_architecture_alone_says_where_its_weights_may_come_from(library, source, tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")  # in the working directory, which is not asked about
    monkeypatch.chdir(tmp_path)
    with raises(SourceError, f"name: {library}, weights: …"):
        loader(library).check_source(source)


def test_pickles_and_missing_files_are_refused_before_anything_is_built(library, source, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pth")
    with raises(SourceError, "safetensors"):
        loader(library, weights=str(tmp_path / "model.pth")).check_source(source)
    with raises(SourceError, "do not exist"):
        loader(library, weights=str(tmp_path / "nope.safetensors")).check_source(source)


def test_weights_of_another_architecture_are_refused(library, source, tmp_path):
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with raises(SourceError, "architecture"):
        load(library, source, weights=str(tmp_path))


@pytest.fixture
def altered(base, tmp_path):
    """Return a copy of the folder with some entries of config.json replaced."""

    def alter(**entries):
        folder = shutil.copytree(base[1], tmp_path / "altered", dirs_exist_ok=True)
        config = json.loads((base[1] / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | entries))
        return str(folder)

    return alter


ARGUMENTS = ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "num_classes"]


@pytest.mark.parametrize("name", [*ARGUMENTS, "weights", "features_only", "scriptable"])
def test_a_folder_cannot_make_a_library_read_other_files(library, altered, name, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    with raises(SourceError, "config.json", f"'{name}'"):
        load(library, altered(model_args={name: "evil.pth"}))


@pytest.mark.parametrize(
    "entries", [{"label_names": 3}, {"model_args": 3}, {"CONFIG": "x"}, {"CONFIG": {"mean": "x"}}], ids=str
)
@pytest.mark.parametrize("skeleton", [False, True])
def test_a_malformed_config_is_a_source_error(library, altered, entries, skeleton):
    key = {"timm": "pretrained_cfg", "torchvision": "preprocessing"}[library]
    with raises(SourceError, "altered"):
        load(library, altered(**{k.replace("CONFIG", key): v for k, v in entries.items()}), skeleton=skeleton)


def test_a_size_that_contradicts_the_folder_s_is_refused(library, altered):
    folder = altered(model_args={"img_size": 32})
    with raises(SourceError, "img_size 32", "model.loader.image_size is 64"):
        loader(library, image_size=64).check_source(folder)
    loader(library, image_size=32).check_source(folder)


def test_a_folder_takes_no_other_weights(library, base):
    _, folder = base
    with raises(SourceError, "own weights"):
        loader(library, weights="random").check_source(str(folder))


@pytest.mark.parametrize("name", LOADERS)
def test_a_library_that_is_not_installed_is_named(name, monkeypatch):
    monkeypatch.setattr("ftengine_builtins.loaders.vision.find_spec", lambda name: None)
    with raises(SourceError, f"pip install {name}"):
        loader(name).check_source(f"{name}://resnet18")


# Which loader takes what


def test_sources_find_their_loader(library, source, base, bert_folder, tmp_path):
    def chosen(source):
        return Registry().loader_of(source, {"name": "auto"}).name

    _, folder = base
    assert chosen(source) == library
    assert chosen(str(folder)) == library
    assert chosen(str(bert_folder)) == "transformers"
    (tmp_path / "config.json").write_text("[]")
    assert not loader(library).accepts(str(tmp_path))


# Preprocessing


def pixels(processor, size=(300, 200)):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    return image, processor(images=image, return_tensors="pt")["pixel_values"]


def test_images_are_prepared_as_timm_does():
    timm = pytest.importorskip("timm")
    image, found = pixels(loader("timm", weights="random").load_processor("timm://resnet18.a1_in1k"))
    data = timm.data.resolve_model_data_config(timm.create_model("resnet18.a1_in1k"))
    expected = timm.data.create_transform(**data, is_training=False)(image)
    assert torch.equal(found[0], expected)


def test_images_are_prepared_as_torchvision_does():
    models = pytest.importorskip("torchvision.models")
    image, found = pixels(loader("torchvision", weights="random").load_processor("torchvision://resnet18"))
    assert torch.equal(found[0], models.ResNet18_Weights.DEFAULT.transforms()(image))


# A whole run


@pytest.mark.slow
def test_a_model_with_batch_norm_is_tuned_reopened_and_merged(library, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label, level in (("dark", 40), ("light", 200)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(12):
            noise = rng.integers(-30, 30, (32, 32, 3)) + level
            Image.fromarray(noise.astype("uint8")).save(tmp_path / "photos" / label / f"{i}.png")
    recipe = {
        "model": {"source": source, "loader": {"name": library, "weights": "random", "image_size": 32}},
        "task": "image-classification",
        "data": {"train": "photos", "validation": 0.25},
        "strategy": {"name": "full", "batch_norm": "train"},
        "train": {"epochs": 3, "batch_size": 6, "learning_rate": 0.001, "precision": "float32"},
        "evaluation": {"resamples": 100, "training_sample": None},
        "output": "run",
    }
    run = fine_tune(Recipe.make(recipe))
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert losses[-1] < losses[0]
    again = load_run("run")
    assert again.evaluate() == run.evaluation
    answers = list(again.predict([{"image": f"photos/light/{i}.png"} for i in range(3)]))
    assert all(answer["scores"].keys() == {"dark", "light"} for answer in answers)
    report = run.merge("merged")
    assert report.difference <= report.tolerance
    merged = load(library, "merged", Labels("single", ("dark", "light")))
    assert merged.new_modules == ()
