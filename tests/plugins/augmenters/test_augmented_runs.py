"""Tiny runs with each augmenter, and what plan and resume make of them."""

import json
import math

import pytest
import yaml
from click.testing import CliRunner
from expected import raises
from rows import photos, write_rows
from runs import curve, interrupt, losses
from tiny import tiny_t5, tiny_vit

from ftengine import Recipe, fine_tune, load_run, plan
from ftengine.cli import main
from ftengine.data.augmentation_preview import without_effect
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import prepare_data
from ftengine.errors import DataError, RecipeError
from ftengine.plugins.registry import Registry

NO_FILE = ["case", "delete-words", "keyboard", "mask-spans", "ocr", "punctuation", "swap-words"]
IMAGES = ["color", "crop", "flip", "rand-augment", "trivial-augment", "mixup", "cutmix"]


@pytest.fixture
def texts(bert_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {"sport": "the match and the goal", "money": "shares and profits rose"}
    rows = [{"text": f"{words[label]} {i}", "label": label} for i in range(10) for label in words]
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "words.tsv").write_text("goal\tscore\nprofits\tearnings\n")
    return content(str(bert_folder), "text-classification", "rows.jsonl")


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    return content(str(tiny_vit(tmp_path / "vit")), "image-classification", "photos")


def content(source, task, data):
    return {
        "model": {"source": source},
        "task": task,
        "data": {"train": data, "validation": 0.25},
        "strategy": "full",
        "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.002, "precision": "float32"},
        "evaluation": {"resamples": 100, "training_sample": None},
        "output": "run",
    }


def recipe(base, augment, **changes):
    return Recipe.make({**base, "augment": augment, **changes})


def test_every_built_in_augmenter_is_run_here():
    names = {entry.name for entry in Registry().entries("augmenter") if entry.origin.distribution == "ftengine"}
    assert names == {*NO_FILE, *IMAGES, "synonyms", "back-translation"}


def run_changes_what_is_read(base, *augments, idle=()):
    """Train with each list of augmenters at once; all but the idle ones change what the model reads."""
    base = {**base, "train": {**base["train"], "max_steps": 4}}
    plain = losses(fine_tune(recipe(base, [])))
    for number, augment in enumerate(augments):
        changing = recipe(base, augment, output=f"run-{number}")
        assert without_effect(prepare_data(Experiment.open(changing)).encoded["train"]) == list(idle)
        changed = losses(fine_tune(changing))
        assert len(changed) == 4
        assert all(map(math.isfinite, changed))
        assert changed != plain


@pytest.mark.slow
def test_a_run_with_every_augmenter_of_texts_has_finite_losses_of_its_own(texts, tmp_path):
    back = {"name": "back-translation", "forward": str(tiny_t5(tmp_path / "t5")), "backward": "t5", "max_length": 16}
    more = [{"name": "synonyms", "file": "words.tsv", "rate": 1}, {**back, "probability": 1, "device": "cpu"}]
    whole = [{"name": name, "probability": 1} for name in ("case", "punctuation")]
    words = [{"name": name, "rate": 0.5} for name in NO_FILE if name not in ("case", "punctuation")]
    run_changes_what_is_read(texts, [*more, *whole, *words], idle=["case"])  # the tiny BERT reads no case


@pytest.mark.slow
def test_a_run_with_every_augmenter_of_images_has_finite_losses_of_its_own(images):
    chosen = [{"name": name, "probability": 1} for name in IMAGES]
    run_changes_what_is_read(images, chosen[:-1], chosen[-1:])


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_curve(texts, images):
    for base, augment in ((texts, ["keyboard", "delete-words"]), (images, ["trivial-augment", "mixup"])):
        name = base["task"]
        train = {**base["train"], "checkpoint_every": 2}
        whole = fine_tune(recipe(base, augment, train=train, output=f"whole-{name}"))
        stopped = recipe(base, augment, train=train, output=f"stopped-{name}")
        interrupt(stopped, after=3)
        assert curve(fine_tune(stopped, resume=True).path) == curve(whole.path)


@pytest.mark.slow
def test_a_finished_run_is_evaluated_without_its_word_list(texts, tmp_path):
    run = fine_tune(recipe(texts, [{"name": "synonyms", "file": "words.tsv"}]))
    (tmp_path / "words.tsv").unlink()
    assert load_run(run.path).evaluate()["tuned"] == run.evaluation["tuned"]


@pytest.mark.parametrize(
    ("augment", "error", "message"),
    [
        (["flip"], RecipeError, "'flip'"),
        ([{"name": "synonyms", "file": "nope.tsv"}], DataError, "augment.0: "),
        ([{"name": "keyboard", "rate": 2}], RecipeError, "augment.0.rate"),
        ([{"name": "synonyms"}], RecipeError, "augment.0.file"),
    ],
)
def test_what_cannot_augment_is_refused_before_the_model_loads(texts, augment, error, message, no_weights):
    with raises(error, message):
        fine_tune(recipe(texts, augment))


def planned(base, augment, *options):
    with open("recipe.yaml", "w") as file:
        yaml.safe_dump({**base, "augment": augment}, file)
    result = CliRunner().invoke(main, ["plan", "recipe.yaml", "--no-measure", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_plan_shows_three_examples_before_and_after(texts):
    shown = json.loads(planned(texts, [{"name": "keyboard", "rate": 0.3}], "--json"))["augmented"]
    assert len(shown) == 3
    assert all(entry["before"] != entry["after"] and entry["place"].startswith("rows.jsonl:") for entry in shown)
    page = planned(texts, [{"name": "keyboard", "rate": 0.3}])
    assert "Training examples before and after augmenting" in page
    assert all(f"after   {entry['after'][0]}" in page for entry in shown)
    assert "Training examples before and after" not in planned(texts, [])


def test_plan_shows_images_in_numbers_and_mixed_labels(images):
    shown = json.loads(planned(images, [{"name": "color", "hue": 0}, "mixup"], "--json"))["augmented"]
    assert shown[0]["before"] == shown[0]["after"] == [{"width": 24, "height": 24}]
    assert 0 < shown[0]["difference"] < 60
    assert all(abs(sum(row) - 1) < 0.002 for row in shown[-1]["after"]["labels"])
    assert "24 × 24, pixels differ by " in planned(images, ["flip"])


def test_plan_warns_of_an_augmenter_that_changes_nothing(texts):
    warnings = plan(recipe(texts, ["keyboard", {"name": "ocr", "rate": 0}]), measure=False).warnings
    found = [warning for warning in warnings if "augmenter" in warning]
    assert found == [
        "augmenter 'ocr' changes nothing that the model reads in the sampled training examples of the first epoch."
    ]


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_batches_of_one_is_refused_before_data_is_read(images, name, monkeypatch):
    alone = {"train": {**images["train"], "batch_size": 1, "accumulate": 4}}
    with monkeypatch.context() as patch:
        patch.setattr("ftengine.engine.prepared_data.make_splits", lambda *_: pytest.fail("data was read"))
        with raises(RecipeError, name, "augment.1", "train.batch_size is 1") as refused:
            fine_tune(recipe(images, ["flip", name], **alone))
        assert refused.value.exit_code == 2
    plan(recipe(images, ["flip"], **alone), measure=False)
