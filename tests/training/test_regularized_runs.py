"""Runs with regularizers: resumed ones, ones in smaller micro-batches, and all of them at once."""

import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from expected import raises
from installed import registry_with
from rows import WORDS, sentences, write_rows
from runs import curve, interrupt
from spread import Spread

from ftengine import Recipe, fine_tune, plan
from ftengine.api import Regularizer
from ftengine.errors import PluginError, RecipeError
from ftengine.model import read_tensors
from ftengine.training.loop import Trainer
from ftengine.training.regularizing import Attached

EVERY = ["label-smoothing", "dropout", "neftune", "l2-sp", "r-drop", "mixout", "ema", "wise-ft"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """48 sentences in three classes that a word tells apart, one in nine labelled by lot."""
    rng = random.Random(0)
    lines = list(sentences(48, rng, length=5))
    for row in lines[::9]:
        row["label"] = rng.choice(sorted(WORDS))
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", lines)


@pytest.fixture
def recipe(bert_folder, rows, tmp_path):
    def build(name, regularize, **train):
        return Recipe.make(
            {
                "model": {"source": str(bert_folder)},
                "task": "text-classification",
                "data": {"train": rows, "validation": 0.25},
                "strategy": train.pop("strategy", "full"),
                "regularize": regularize,
                "train": {"epochs": 2, "batch_size": 8, "learning_rate": 0.002, "precision": "float32"} | train,
                "evaluation": {"resamples": 100, "training_sample": None},
                "output": str(tmp_path / name),
            }
        )

    return build


def weights(run):
    return read_tensors(run.trained / "model.safetensors")


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(recipe):
    """Each alone is resumed by a check of `ftengine.testing`, which tests/test_components_conform.py runs."""
    resumes_as_uninterrupted(recipe, ["l2-sp", "r-drop", "mixout", "ema", "wise-ft"], "model.safetensors")


def resumes_as_uninterrupted(recipe, regularize, file, registry=None, **options):
    """Return the uninterrupted run."""
    options = {"checkpoint_every": 3, "max_steps": 7, **options}
    whole = fine_tune(recipe("whole", regularize, **options), registry=registry)
    broken = recipe("broken", regularize, **options)
    interrupt(broken, after=5, registry=registry)
    resumed = fine_tune(broken, resume=True, registry=registry)
    assert curve(resumed.path) == curve(whole.path)
    tensors = [read_tensors(run.trained / file).values() for run in (whole, resumed)]
    assert all((a == b).all() for a, b in zip(*tensors, strict=True))
    return whole


@pytest.fixture
def with_spread():
    return registry_with(Spread)


@pytest.mark.slow
def test_a_strategy_brings_a_regularizer_that_trains_and_resumes(recipe, with_spread):
    """It stands before the recipe's, whose average is of what it left; both have a place in the checkpoint."""
    whole = resumes_as_uninterrupted(recipe, ["ema"], "trained.safetensors", with_spread, strategy="spread")
    penalties = [line.get("penalty", 0) for line in curve(whole.path) if "loss" in line]
    assert penalties[0] == 0
    assert min(penalties[1:]) > 0
    facts = whole.directory.read_json("training.json")["regularizers"]
    assert [entry["name"] for entry in facts] == ["spread", "ema"]
    plan(recipe("planned", [], strategy="spread"), registry=with_spread)


def test_steps_that_a_strategy_cannot_train_for_are_refused_before_weights_are_read(recipe, with_spread, no_weights):
    few = recipe("run", [], strategy={"name": "spread", "wait": 4}, max_steps=4)
    for command in (fine_tune, partial(plan, measure=False)):
        with raises(RecipeError, "4 steps"):
            command(few, registry=with_spread)


def test_what_is_no_regularizer_is_refused(recipe, with_spread, monkeypatch):
    monkeypatch.setattr(Spread, "regularizer", lambda self, steps: "ema")
    with raises(PluginError, "'spread'", "regularizer()", "'ema'"):
        fine_tune(recipe("run", [], strategy="spread"), registry=with_spread)


@pytest.mark.slow
def test_a_penalty_counts_once_however_the_batch_is_cut(recipe):
    """L2-SP does not depend on the batch; dropout is off, so that both runs compute the same."""
    regularize = [{"name": "dropout", "p": 0}, {"name": "l2-sp", "alpha": 5.0, "beta": 1.0}]
    whole = fine_tune(recipe("whole", regularize, max_steps=3))
    cut = fine_tune(recipe("cut", regularize, max_steps=3, batch_size=2, accumulate=4))
    free = fine_tune(recipe("free", regularize[:1], max_steps=3))
    for step, (one, other) in enumerate(zip(curve(whole.path), curve(cut.path), strict=True)):
        for key in one.keys() & {"loss", "penalty", "grad_norm", "validation_loss", "training_loss"}:
            # Adam divides by the size of the gradient, and so enlarges rounding where that is near zero.
            assert other[key] == pytest.approx(one[key], rel=1e-5 if step == 0 else 2e-2)
    assert all(line["penalty"] > 0 for line in curve(whole.path) if "loss" in line)
    assert not any("penalty" in line for line in curve(free.path))
    # The logged loss is the task's: before anything moved it is that of the run without a penalty.
    assert curve(whole.path)[0]["loss"] == curve(free.path)[0]["loss"]


def test_validation_is_set_beside_training_measured_alike(recipe):
    run = fine_tune(recipe("run", []))
    lines = [line for line in curve(run.path) if "validation_loss" in line]
    assert lines
    assert all(line.keys() == {"step", "epoch", "validation_loss", "training_loss"} for line in lines)
    assert lines[-1]["training_loss"] != lines[-1]["validation_loss"]


@pytest.mark.slow
def test_what_ema_validates_is_what_it_keeps(recipe):
    """The loss of the loaded result is the validation loss that was logged for the kept step."""
    run = fine_tune(recipe("run", [{"name": "ema", "decay": 0.9}], keep_best=False, learning_rate=0.01))
    logged = [line["validation_loss"] for line in curve(run.path) if "validation_loss" in line][-1]
    plain = fine_tune(recipe("plain", [], keep_best=False, learning_rate=0.01))
    other = [line["validation_loss"] for line in curve(plain.path) if "validation_loss" in line][-1]
    assert run.evaluation["split"] == "validation"
    value = run.evaluation["tuned"]["loss"]["value"] if "loss" in run.evaluation["tuned"] else logged
    assert value == pytest.approx(logged, rel=1e-5)
    assert logged != pytest.approx(other, rel=1e-4)
    assert [line["loss"] for line in curve(run.path) if "loss" in line] == [
        line["loss"] for line in curve(plain.path) if "loss" in line
    ]  # training itself goes on with the weights


@pytest.mark.slow
def test_all_of_them_together_train_a_model_that_is_saved_as_any(recipe):
    options = {"epochs": 6, "learning_rate": 0.003, "precision": "bfloat16", "gradient_checkpointing": True}
    run = fine_tune(recipe("run", EVERY, **options))
    plain = fine_tune(recipe("plain", [], max_steps=1))
    assert weights(run).keys() == weights(plain).keys()
    losses = [line["validation_loss"] for line in curve(run.path) if "validation_loss" in line]
    trained = [line["training_loss"] for line in curve(run.path) if "training_loss" in line]
    assert min(trained) < trained[0]
    facts = {entry["name"]: entry for entry in run.directory.read_json("training.json")["regularizers"]}
    assert list(facts) == EVERY
    points = facts["wise-ft"]["curve"]
    assert [point["alpha"] for point in points] == pytest.approx([i / 10 for i in range(11)])
    assert min(points, key=lambda point: point["validation_loss"])["validation_loss"] <= min(losses) + 1e-3


@pytest.mark.slow
def test_checkpointing_draws_the_same_masks_again(recipe):
    """Mixout and NEFTune are recomputed in the backward pass with the randomness of the forward pass."""
    curves = [
        curve(fine_tune(recipe(f"run{on}", ["mixout", "neftune"], max_steps=2, gradient_checkpointing=on)).path)
        for on in (False, True)
    ]
    for one, other in zip(*curves, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() & {"loss", "grad_norm"}:
            assert one[key] == pytest.approx(other[key], rel=1e-5)


def test_what_cannot_work_is_refused_before_weights_are_read(recipe, no_weights):
    with raises(RecipeError, "trains only new weights"):
        fine_tune(recipe("run", ["l2-sp"], strategy="lora"))
    with raises(RecipeError, "dropout"):
        fine_tune(recipe("run", ["r-drop", {"name": "dropout", "p": 0}]))
    refused = recipe("run", ["wise-ft"])
    refused.data.validation = None
    with raises(RecipeError, "validation"):
        fine_tune(refused)


@pytest.mark.parametrize("name", EVERY)
def test_a_regularizer_named_twice_is_refused_before_data_is_read(recipe, name, monkeypatch, tmp_path):
    monkeypatch.setattr("ftengine.engine.prepared_data.make_splits", lambda *_: pytest.fail("data was read"))
    other = "ema" if name != "ema" else "dropout"
    with raises(RecipeError, name, "regularize.1", "regularize.2") as refused:
        fine_tune(recipe("run", [other, name, {"name": name}]))
    assert refused.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_is_detached(recipe, monkeypatch):
    detached, detach = [], Attached.detach

    def spying(self):
        detached.append(len(self._attached))
        detach(self)

    monkeypatch.setattr(Attached, "detach", spying)
    monkeypatch.setattr(Trainer, "step", lambda self, *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fine_tune(recipe("run", ["mixout", "ema"]))
    assert detached == [2, 2]  # the skeleton, then the model


def test_what_a_regularizer_keeps_only_after_a_step_is_given_back():
    """`tensors` of the fresh object is empty; the checkpoint's are not."""

    class Moments(Regularizer):
        name = "moments"
        mean = None

        def state_dict(self):
            return {} if self.mean is None else {"mean": self.mean}

        def load_state_dict(self, tensors):
            self.mean = tensors["mean"]

    loaded = SimpleNamespace(module=torch.nn.Linear(1, 1))
    before, after, other = Moments(), Moments(), Moments()
    before.mean = torch.ones(2)
    saved = Attached([Moments(), before], loaded, None).state_dict()
    Attached([other, after], loaded, None).load_state_dict(saved)
    assert after.mean.tolist() == [1, 1]
    assert other.mean is None
