"""A command that is ended saves a checkpoint, and says what is saved and how to go on."""

import signal
import subprocess
import sys
from importlib import import_module

import pytest
import yaml
from click.testing import CliRunner
from runs import Forked

from ftengine import Recipe, fine_tune
from ftengine.api import SilentListener
from ftengine.cli import main
from ftengine.run.directory import STOP, RunDirectory
from ftengine.training.loop import Trainer
from ftengine.training.stopping import Stop


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """What a shell starts in the background ignores SIGINT, and the tests with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def terminated(arguments, run):
    """Train in a process of its own and terminate it on its way; return its exit status and what it said."""
    child = Forked(lambda: main(list(map(str, arguments)), prog_name="ftengine"), run.path.parent)
    return child.end_after_step(12, run, signal.SIGTERM)


def interrupted(arguments, run, interrupt=lambda run: signal.raise_signal(signal.SIGINT)):
    """Train in this process, with Ctrl-C in the middle of a step."""
    step = Trainer.step

    def stopping(self, *args):
        if any(line["step"] >= 12 for line in run.metrics()):
            interrupt(run)
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        result = CliRunner().invoke(main, list(map(str, arguments)), prog_name="ftengine")
    return result.exit_code, result.stderr


def asked(arguments, run):
    """Train in this process, with a file that asks to stop."""
    status, text = interrupted(arguments, run, lambda run: (run.path / STOP).touch())
    assert not (run.path / STOP).exists()
    return status, text


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [(interrupted, 130), (terminated, 143), (asked, 130)])
def test_an_ended_run_says_what_is_saved_and_how_to_go_on(recipe, tmp_path, end, code):
    file, run = tmp_path / "long recipe.yaml", RunDirectory(tmp_path / "run")
    content = yaml.safe_load(recipe.read_text())
    content["train"] |= {"epochs": 500, "checkpoint_every": 5, "validate_every": 1000}
    file.write_text(yaml.safe_dump(content | {"output": str(run.path)}))
    status, text = end(["train", file, "--set", "seed=3"], run)
    said = [line for line in text.splitlines() if line]
    assert status == code
    assert said[-1] == f"error: {'terminated' if end is terminated else 'interrupted'}."
    step = int(sorted(path.name for path in run.checkpoints.iterdir())[-1].removeprefix("step-"))
    assert step == run.metrics()[-1]["step"]
    resume = f"ftengine train '{file}' --set seed=3 --resume"
    assert (
        said[-2]
        == f"saved: the checkpoint of step {step} in {run.checkpoints}/step-{step:06d}; go on from there with: {resume}"
    )


@pytest.mark.parametrize(
    ("command", "writes"),
    [
        (["merge", "{run}", "{out}"], "ftengine.engine.merge._open_written"),
        (["export", "{run}", "--to", "peft", "{out}"], "ftengine.engine.export.proof_of"),
    ],
)
def test_a_terminated_command_leaves_nothing_half_written(run, tmp_path, monkeypatch, command, writes):
    """SIGTERM while the files that it has written are checked."""
    monkeypatch.setattr(writes, lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    line = [part.format(run=run, out=tmp_path / "out") for part in command]
    result = CliRunner().invoke(main, line, prog_name="ftengine")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (143, "error: terminated.")
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_ends_a_chat_that_ctrl_c_does_not_end(run, monkeypatch):
    """In a terminal, where Ctrl-C ends an answer alone."""
    chat = import_module("ftengine.cli.chat")
    talk = chat._talk
    monkeypatch.setattr(chat, "_talk", lambda conversation, sides, **_: talk(conversation, sides, terminal=True))
    monkeypatch.setattr(chat, "_typed", lambda *_: iter(["hello", "again"]))
    monkeypatch.setattr("ftengine.engine.chat.Chat.answer", lambda *_: signal.raise_signal(signal.SIGTERM))
    result = CliRunner().invoke(main, ["chat", str(run)], prog_name="ftengine")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (143, "error: terminated.")


def test_what_a_signal_waits_for_is_reported_at_once(capfd):
    def training():
        with Stop(single_process=True).listening():
            signal.raise_signal(signal.SIGINT)
            said.append(capfd.readouterr().err)

    said = []
    with pytest.raises(KeyboardInterrupt):
        training()
    assert said[0].strip() == "ending this step, then saving a checkpoint; the same signal again stops at once"


class Asking(SilentListener):
    """Asks a run to stop when a phase begins, and keeps the messages."""

    def __init__(self, run, phase):
        self.run, self.when, self.messages = run, phase, []

    def phase(self, name, total=None):
        if name == self.when:
            (self.run.path / STOP).touch()

    def message(self, text):
        self.messages.append(text)


@pytest.mark.slow
def test_a_file_before_the_first_step_stops_after_it_and_one_after_the_last_is_reported(recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    opened = Recipe.read(recipe, [f"output={run.path}"])
    with pytest.raises(KeyboardInterrupt):
        fine_tune(opened, listener=Asking(run, "train"))
    assert run.metrics()[-1]["step"] == 1
    assert not (run.path / STOP).exists()
    (run.path / STOP).touch()  # for a process that is gone
    asking = Asking(run, "figures")
    fine_tune(opened, resume=True, listener=asking)
    assert run.finished
    assert any(STOP in text and "last step" in text for text in asking.messages)
    assert not (run.path / STOP).exists()


def test_a_signal_stops_training_in_order_where_nobody_reads_what_is_reported(monkeypatch):
    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr("ftengine.training.stopping.os.write", broken)
    stop = Stop(single_process=True)
    stop._ask(signal.SIGINT, None)
    assert stop.requested


def test_a_second_ctrl_c_does_not_wait_for_the_step(recipe, tmp_path, monkeypatch):
    def stopping(self, *args):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the step went on")

    monkeypatch.setattr(Trainer, "step", stopping)
    arguments = ["train", str(recipe), "--set", f"output={tmp_path / 'run'}"]
    result = CliRunner().invoke(main, arguments, prog_name="ftengine")
    assert result.exit_code == 130
    assert "no checkpoint is saved yet" in result.stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


WAITING = "import time; from ftengine.run.parent import end_with_parent; end_with_parent(); print(); time.sleep(60)"
PARENT = f"""
import os, subprocess, sys, time
options = {{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {{**os.environ, "_FTENGINE_PARENT": "1"}}}}
child = subprocess.Popen([sys.executable, "-c", {WAITING!r}], **options)
child.stdout.readline()
print(flush=True)
time.sleep(60)
"""


def test_a_run_ends_with_the_killed_command_that_started_it():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        parent.stdout.readline()
        parent.kill()
        parent.communicate(timeout=30)  # the child has the same stderr, which ends with it
