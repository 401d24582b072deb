"""Whatever fails behind the last step, the trained part and all that was made stay; `--resume` goes on from there."""

import filecmp
import random
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
from expected import raises
from installed import registry_with
from rows import sentences, write_rows
from runs import Heard, curve

from ftengine import Recipe, Run, api, fine_tune, load_run
from ftengine.engine import fine_tune as stages
from ftengine.engine import saved_part
from ftengine.engine.export import require_as_finished
from ftengine.errors import RunError, TrainingError
from ftengine.evaluation.runner import EvalRunner
from ftengine.report import write
from ftengine.run.directory import RunDirectory
from ftengine.run.records import TrainedPart, TrainingResult
from ftengine.training.loop import Trainer
from ftengine_builtins.tasks.text_classification import TextClassification


class Fault(Exception):
    """What is planted."""


class Ends(api.Callback):
    """Ends the run by an event."""

    name = "ends"
    at = ""

    heard: ClassVar[list[str]] = []

    def _hear(self, event):
        self.heard.append(event.moment)
        if event.moment == self.at and getattr(event, "folder", Path("adapter")).name == "adapter":
            raise TrainingError("planted")

    on_train_begin = on_pre_optimizer_step = on_step_end = on_evaluate = on_save = on_run_end = on_exception = _hear


class Breaks(api.Rule):
    """Cannot judge."""

    name = "breaks"
    broken = False

    def judge(self, run):
        if self.broken:
            raise Fault("planted")
        return []


def registry():
    return registry_with(Ends, Breaks)


@pytest.fixture(scope="module")
def build(bert_folder, tmp_path_factory):
    """A recipe by its folder, a run that was undisturbed, and the folder of one that ended behind its last step."""
    folder = tmp_path_factory.mktemp("behind")
    data = write_rows(folder / "labels.jsonl", sentences(60, random.Random(0)))

    def recipe(output):
        return Recipe.make(
            {
                "model": {"source": str(bert_folder)},
                "task": "text-classification",
                "data": {"train": str(data), "validation": 0.2, "test": 0.2},
                "strategy": "full",
                "callbacks": ["ends"],
                "train": {"max_steps": 2, "batch_size": 8, "learning_rate": 0.002, "precision": "float32"},
                "evaluation": {"resamples": 100, "training_sample": None, "reuse_base": False},
                "output": str(output),
            }
        )

    whole = fine_tune(recipe(folder / "whole"), registry=registry())
    # As a run is whose process was killed behind its last step.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "save_trained_part", fail)
        with pytest.raises(Fault):
            fine_tune(recipe(folder / "trained"), registry=registry())
    return recipe, whole, folder / "trained"


def fail(*args, **kwargs):
    raise Fault("planted")


def fail_of_tuned(self, outputs, *_):
    return fail() if self.side == "tuned" else outputs


FILES = ["predictions", "examples.json", "evaluation.json", "verdict.json", "report.html", "seal.json"]
"""What is written behind training, in this order."""

STAGES = {
    "save": (lambda patch: patch.setattr(saved_part, "save_part", fail), None, 0),
    "measure": (lambda patch: patch.setattr(stages, "measure_tuned", fail), "pending", 0),
    "judge": (lambda patch: patch.setattr(EvalRunner, "_judged", fail_of_tuned), "pending", 0),
    "calibrate": (lambda patch: patch.setattr(TextClassification, "calibrate", fail), "pending", 1),
    "figures": (lambda patch: patch.setattr(stages, "evaluate", fail), "pending", 1),
    "check": (lambda patch: patch.setattr(saved_part, "_first_outputs", fail), "pending", 3),
    "open": (lambda patch: patch.setattr(saved_part, "_open", fail), "failed", 3),
    "saved": (lambda patch: patch.setattr(Ends, "at", "on_save"), "passed", 3),
    "rule": (lambda patch: patch.setattr(Breaks, "broken", True), "passed", 3),
    "report": (lambda patch: patch.setattr(write, "render", fail), "passed", 3),
    "finished": (lambda patch: patch.setattr(Ends, "at", "on_run_end"), "passed", 5),
}
"""By stage: how its fault is planted, how the trained part is marked, and how many of the files are there."""

FEW = ("judge", "check", "saved")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [one if one in FEW else pytest.param(one, marks=pytest.mark.slow) for one in STAGES])
def test_a_fault_behind_training_loses_nothing_and_resume_goes_on(build, tmp_path, monkeypatch, stage):
    recipe, whole, trained = build
    shutil.copytree(trained, tmp_path / "run")
    run, heard = RunDirectory(tmp_path / "run"), Heard()
    plant, mark, written = STAGES[stage]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", fail)
        plant(patch)
        with pytest.raises(Exception, match="planted"):
            fine_tune(recipe(run.path), resume=True, registry=registry(), listener=heard)
    assert [name for name in FILES if (run.path / name).exists()] == FILES[:written]
    assert not list(run.path.rglob("*.partial"))
    if mark is None:
        assert not run.trained.exists()
    else:
        facts = TrainedPart.read(RunDirectory(run.trained))
        assert (facts.check, "planted" in facts.unchecked) == (mark, mark != "passed")
        assert (run.trained / "model.safetensors").read_bytes() == (whole.trained / "model.safetensors").read_bytes()
        assert TrainingResult.read(run).steps == 2
        assert run.finished == (mark == "passed")
        if mark != "passed":
            assert any("training is complete" in one and "--resume" in one for one in heard.said)

    monkeypatch.setattr(Trainer, "step", fail)  # nothing trains again
    if mark in ("pending", "failed"):
        sets = {"measure": 2, "judge": 3}.get(stage, 4)  # of validation and test, of base and tuned model
        assert len(list((run.checkpoints / "outputs").iterdir())) == sets
    if stage not in ("save", "measure", "judge"):
        monkeypatch.setattr(TextClassification, "predict", fail)  # nor is a model asked again
    Ends.heard.clear()
    (run.path / "training.json.partial").write_text("{")  # as a kill leaves it
    resumed = fine_tune(recipe(run.path), resume=True, registry=registry())
    assert Ends.heard[-2:] == ["on_save", "on_run_end"]
    assert not (run.checkpoints / "outputs").exists()
    assert (resumed.facts, resumed.evaluation) == (whole.facts, whole.evaluation)
    assert curve(resumed.path) == curve(whole.path)
    assert {file.name for file in resumed.path.iterdir()} == {file.name for file in whole.path.iterdir()}
    same = filecmp.dircmp(resumed.trained, whole.trained)
    assert not same.left_only + same.right_only + same.diff_files


class OthersTask(TextClassification):
    """A task of another distribution, whose author mends what it computes before the run goes on."""

    name = "others-task"
    mended = False

    def predict(self, model, batch):
        return [one if self.mended else {**one, "predicted": 0} for one in super().predict(model, batch)]


@pytest.mark.slow
def test_outputs_of_other_code_are_asked_again(build, tmp_path, monkeypatch):
    content = build[0](tmp_path / "run").model_dump(mode="json", exclude_unset=True)
    recipe = Recipe.make({**content, "task": "others-task", "callbacks": []})
    plugin = registry_with(OthersTask)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "evaluate", fail)
        with pytest.raises(Fault):
            fine_tune(recipe, registry=plugin)
    monkeypatch.setattr(OthersTask, "mended", True)
    resumed = fine_tune(recipe, resume=True, registry=plugin)
    assert resumed.evaluation["tuned"]["accuracy"] == build[1].evaluation["tuned"]["accuracy"]


@pytest.fixture
def unchecked(build, tmp_path, monkeypatch):
    """A run whose check has crashed."""
    recipe, _, trained = build
    shutil.copytree(trained, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(saved_part, "_first_outputs", fail)
        with pytest.raises(Fault):
            fine_tune(recipe(tmp_path / "run"), resume=True, registry=registry())
    return tmp_path / "run"


def test_an_unchecked_part_answers_with_a_message_and_is_not_passed_on(build, unchecked, tmp_path):
    _, whole, _ = build
    heard = Heard()
    run = load_run(unchecked, registry=registry(), listener=heard)
    (said,) = heard.said
    assert all(fact in said for fact in (str(unchecked), "not checked", "planted", "--resume"))
    rows = [{"text": "the red fox"}]
    assert list(run.predict(rows)) == list(load_run(whole.path, registry=registry()).predict(rows))
    for refused in (require_as_finished, Run.conclude):
        with raises(RunError, str(unchecked), "not checked", "--resume"):
            refused(run)
