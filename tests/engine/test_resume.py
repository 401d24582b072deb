"""A run killed at any instant continues as if nothing had happened."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from expected import raises
from runs import Forked, Interruption, curve, interrupt

from ftengine import fine_tune
from ftengine.api import SilentListener
from ftengine.errors import RunError
from ftengine.run.directory import RunDirectory


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_curve_of_an_uninterrupted_one(chat_recipe, tmp_path):
    settings = {"train__epochs": 5, "train__checkpoint_every": 5, "train__validate_every": 4}
    whole = fine_tune(chat_recipe(**settings, output=str(tmp_path / "whole")))
    killed = chat_recipe(**settings, output=str(tmp_path / "killed"))
    child = Forked(lambda: fine_tune(killed, resume=True), tmp_path)
    status, _ = child.end_after_step(8, RunDirectory(tmp_path / "killed"), signal.SIGKILL)  # in the second epoch
    assert status == -signal.SIGKILL
    assert not RunDirectory(tmp_path / "killed").finished
    interrupt(killed, after=4, resume=True)  # later, and neither at a checkpoint
    resumed = fine_tune(killed, resume=True)
    assert curve(resumed.path) == curve(whole.path)
    assert resumed.evaluation == whole.evaluation
    assert (resumed.trained / "adapter_model.safetensors").read_bytes() == (
        whole.trained / "adapter_model.safetensors"
    ).read_bytes()


def test_resume_without_a_run_begins_one_and_of_a_finished_run_returns_it(chat_recipe):
    recipe = chat_recipe(train__max_steps=2)
    run = fine_tune(recipe, resume=True)
    written = (run.path / "evaluation.json").stat().st_mtime_ns
    assert fine_tune(recipe, resume=True).evaluation == run.evaluation
    assert (run.path / "evaluation.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_the_same_folder_is_refused(chat_recipe, resume):
    recipe = chat_recipe(train__max_steps=3)

    class Rival(SilentListener):
        refused = ""

        def advance(self, steps=1, **figures):
            if "loss" in figures and not self.refused:
                with pytest.raises(RunError) as refusal:
                    fine_tune(recipe, resume=resume)
                self.refused = str(refusal.value)

    rival = Rival()
    run = fine_tune(recipe, listener=rival)
    assert ("is in use" if resume else "an unfinished run") in rival.refused
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 2, 3]
    assert not (run.path / ".lock").exists()


@pytest.fixture(scope="module")
def lost(build_chat_recipe, tmp_path_factory):
    """A run that lost its process after three steps, and a copy of its folder."""
    folder = tmp_path_factory.mktemp("lost")
    settings = {"evaluation__answers": 3, "evaluation__training_sample": 8}
    recipe = build_chat_recipe(train__checkpoint_every=2, **settings, output=str(folder / "run"))
    interrupt(recipe, after=3)
    shutil.copytree(folder / "run", folder / "kept")
    return recipe, folder / "kept"


@pytest.fixture
def unfinished(lost):
    """The run that lost its process, as it was then."""
    recipe, kept = lost
    shutil.rmtree(recipe.output)
    shutil.copytree(kept, recipe.output)
    return recipe


def test_resume_under_another_recipe_names_the_keys(unfinished):
    other = unfinished.model_copy(update={"train": unfinished.train.model_copy(update={"learning_rate": 0.5})})
    with raises(RunError, "train.learning_rate"):
        fine_tune(other, resume=True)


def test_resume_on_changed_data_is_refused(chat_recipe, chat_file, tmp_path):
    data, lines = tmp_path / "chat.jsonl", chat_file.read_text().splitlines()
    data.write_text("\n".join(lines))
    recipe = chat_recipe(train__checkpoint_every=2, data__train=str(data))
    interrupt(recipe, after=3)
    data.write_text("\n".join(lines[:-1]))
    listener = Phases()
    with raises(RunError, "data files"):
        fine_tune(recipe, resume=True, listener=listener)
    assert "load model" not in listener.seen  # what the data alone tells is told before it


@pytest.mark.slow
def test_leftovers_of_a_kill_are_removed(unfinished):
    leftover = Path(unfinished.output) / "checkpoints" / "step-000099.partial"
    leftover.mkdir()
    fine_tune(unfinished, resume=True)
    assert not leftover.exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out_and_the_one_before_is_taken(chat_recipe, tmp_path):
    settings = {"train__max_steps": 5, "train__checkpoint_every": 1, "train__keep_checkpoints": 3}
    recipe = chat_recipe(**settings)
    interrupt(recipe, after=4)
    _, second, third = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    changed = bytearray((second / "optimizer.safetensors").read_bytes())
    changed[-1] ^= 1
    (second / "optimizer.safetensors").write_bytes(changed)
    state = json.loads((third / "state.json").read_text())
    (third / "state.json").write_text(json.dumps(state | {"progress": None}))
    listener = Phases()
    resumed = fine_tune(recipe, resume=True, listener=listener)
    told = [text for text in listener.said if "damaged" in text]
    assert len(told) == 2
    assert f"{third.name} is damaged and ignored" in told[0]
    assert "state.json' does not match the hash" in told[0]
    assert "optimizer.safetensors' does not match the hash" in told[1]
    whole = fine_tune(chat_recipe(**settings, output=str(tmp_path / "whole")))
    assert curve(resumed.path) == curve(whole.path)


def test_where_every_checkpoint_is_damaged_nothing_begins_anew(unfinished):
    for file in (Path(unfinished.output) / "checkpoints").glob("step-*/optimizer.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with raises(RunError, "every checkpoint"):
        fine_tune(unfinished, resume=True)


def test_a_damaged_line_of_metrics_is_named_and_nothing_is_dropped(unfinished):
    file = Path(unfinished.output) / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0][:9] + "\n", *lines[1:]]))
    with raises(RunError, "line 1"):
        fine_tune(unfinished, resume=True)
    assert len(file.read_text().splitlines()) == len(lines)


def test_only_what_the_rows_hold_decides_whether_the_data_changed(unfinished):
    """Lengths and what is counted of them may be told otherwise by another version of ftengine."""
    file = Path(unfinished.output) / "audit.json"
    audit = json.loads(file.read_text())
    for split in audit["encoded"].values():
        del split["percentiles"]
    file.write_text(json.dumps(audit))
    with pytest.raises(Interruption):
        fine_tune(unfinished, resume=True, listener=Phases("train"))


def test_resuming_a_run_that_lacks_its_report_writes_it(chat_recipe, monkeypatch, tmp_path):
    from ftengine.training.loop import Trainer

    recipe = chat_recipe(train__max_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr("ftengine.engine.fine_tune.conclude", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fine_tune(recipe)
    assert not (tmp_path / "run" / "report.html").exists()
    monkeypatch.setattr(Trainer, "train", lambda self: pytest.fail("it trained again"))
    run = fine_tune(recipe, resume=True)
    assert (run.path / "report.html").is_file()
    assert json.loads((run.path / "verdict.json").read_text()) == run.verdict.to_json()


class Phases(SilentListener):
    """Notes what is done, and said; loses the process where a phase begins."""

    def __init__(self, until=None):
        self.seen, self.said, self.until = [], [], until

    def phase(self, name, total=None):
        self.seen.append(name)
        if name == self.until:
            raise Interruption

    def message(self, text):
        self.said.append(text)


@pytest.mark.slow
def test_a_resumed_run_does_not_measure_the_base_again(chat_recipe, tmp_path, monkeypatch):
    """It finds what the base predicted where any other run finds it, in one store."""
    monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path / "cache"))
    settings = {"evaluation__answers": 3, "evaluation__training_sample": 8, "evaluation__reuse_base": True}
    recipe = chat_recipe(train__checkpoint_every=2, **settings)
    interrupt(recipe, after=3)
    assert not (Path(recipe.output) / "predictions").exists()
    listener = Phases()
    resumed = fine_tune(recipe, resume=True, listener=listener)
    assert not [phase for phase in listener.seen if phase.startswith("evaluate base")]
    anew = {"output": str(tmp_path / "whole"), "evaluation": recipe.evaluation.model_copy(update={"reuse_base": False})}
    whole = fine_tune(recipe.model_copy(update=anew))
    assert resumed.evaluation == whole.evaluation
    assert {file.name for file in resumed.path.iterdir()} == {file.name for file in whole.path.iterdir()}
