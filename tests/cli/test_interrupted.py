"""A command that is ended says what is saved and how to go on; Ctrl-C is the KeyboardInterrupt that Python makes."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from click.testing import CliRunner

from ftengine.cli import main
from ftengine.run.directory import RunDirectory
from ftengine.training.loop import Trainer


def terminated(arguments, run):
    """Train in a process of its own and terminate it on its way; return its exit status and what it said."""
    line = [sys.executable, "-m", "ftengine", *map(str, arguments)]
    child = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not any(line["step"] >= 12 for line in run.metrics()):
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline, "slow"
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGTERM)
    said = child.communicate(timeout=60)[1]
    return child.returncode, said


def interrupted(arguments, run):
    """Train in this process, with Ctrl-C in the middle of a step."""
    step = Trainer.step

    def stopping(self, *args):
        if any(line["step"] >= 12 for line in run.metrics()):
            raise KeyboardInterrupt
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        result = CliRunner().invoke(main, list(map(str, arguments)), prog_name="ftengine")
    return result.exit_code, result.stderr


@pytest.mark.parametrize(("end", "code"), [(interrupted, 130), (terminated, 143)])
def test_an_ended_run_says_what_is_saved_and_how_to_go_on(recipe, tmp_path, end, code):
    file, run = tmp_path / "long recipe.yaml", RunDirectory(tmp_path / "run")
    content = yaml.safe_load(recipe.read_text())
    content["train"] |= {"epochs": 500, "checkpoint_every": 5, "validate_every": 1000}
    file.write_text(yaml.safe_dump(content | {"output": str(run.path)}))
    status, text = end(["train", file, "--set", "seed=3"], run)
    said = [line for line in text.splitlines() if line]
    assert status == code
    assert said[-1] == f"error: {end.__name__}."
    step = int(sorted(path.name for path in run.checkpoints.iterdir())[-1].removeprefix("step-"))
    resume = f"ftengine train '{file}' --set seed=3 --resume"
    assert (
        said[-2]
        == f"saved: the checkpoint of step {step} in {run.checkpoints}/step-{step:06d}; go on from there with: {resume}"
    )


def test_an_end_before_anything_is_saved_is_said(ftengine, recipe, tmp_path, monkeypatch):
    def ended(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ftengine.engine.fine_tune.prepare_data", ended)
    result = ftengine("train", recipe, "--set", f"output={tmp_path / 'run'}", code=130)
    assert (
        f"nothing is saved yet; begin again with: ftengine train {recipe} --set output={tmp_path / 'run'}"
        in result.stderr
    )


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
