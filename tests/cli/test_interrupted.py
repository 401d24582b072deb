"""A command that is ended says what is saved and how to go on."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from ftengine.run.directory import RunDirectory


def started(recipe, *options):
    line = [sys.executable, "-m", "ftengine", "train", str(recipe), *options]
    return subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(condition, child, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline, "slow"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_ended_run_says_what_is_saved_and_how_to_go_on(ftengine, recipe, tmp_path, number, code, word):
    file, run = tmp_path / "long recipe.yaml", RunDirectory(tmp_path / "run")
    content = yaml.safe_load(recipe.read_text())
    content["train"] |= {"epochs": 500, "checkpoint_every": 5, "validate_every": 1000}
    file.write_text(yaml.safe_dump(content | {"output": str(run.path)}))
    child = started(file, "--set", "seed=3")
    wait_for(lambda: any(line["step"] >= 12 for line in run.metrics()), child)
    os.kill(child.pid, number)
    said = [line for line in child.communicate(timeout=60)[1].splitlines() if line]
    assert child.returncode == code
    assert said[-1] == f"error: {word}."
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
