"""A run directory is written atomically: complete or not at all."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from expected import raises

from ftengine.errors import RunError
from ftengine.model import save_tensors
from ftengine.run.directory import METRICS, RunDirectory, write_folder


def test_an_empty_or_absent_folder_is_free(tmp_path):
    RunDirectory(tmp_path).require_free()
    RunDirectory(tmp_path / "a" / "b").require_free()


@pytest.mark.parametrize("content", ["notes.txt", "recipe.yaml"])
def test_a_folder_with_content_is_refused(tmp_path, content):
    (tmp_path / content).write_text("x")
    with raises(RunError, "not empty"):
        RunDirectory(tmp_path).require_free()


def test_what_a_run_killed_at_its_very_start_leaves_is_free(tmp_path):
    for name in ("audit.json", "environment.json", "recipe.yaml.partial", ".lock"):
        (tmp_path / name).write_text("x")
    RunDirectory(tmp_path).require_free()


HOLDER = """
import sys, time
from ftengine.run.directory import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_keeps_other_processes_out_and_dies_with_its_own(tmp_path):
    run = RunDirectory(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with raises(RunError, "in use"):
            run.require_unlocked()
        holder.kill()
    run.require_unlocked()
    with run.locked(), raises(RunError, "in use"), run.locked():
        pass
    assert not list(tmp_path.iterdir())


def test_a_failed_folder_leaves_the_older_one(tmp_path):
    target = tmp_path / "trained"
    write_folder(target, lambda folder: (folder / "a").write_text("old"))

    def full(folder):
        (folder / "a").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with raises(RunError, "disk is full"):
        write_folder(target, full)
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_an_interrupted_folder_leaves_nothing(tmp_path):
    def interrupted(folder):
        (folder / "a").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "trained", interrupted)
    assert not list(tmp_path.iterdir())


def test_a_metrics_line_cut_off_by_a_kill_is_left_out(tmp_path):
    run = RunDirectory(tmp_path)
    run.append_steps(METRICS, [{"step": 1, "loss": 2.0}])
    run.append_steps(METRICS, [{"step": 2, "loss": 1.0}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert [line["step"] for line in run.metrics()] == [1, 2]
    run.keep_steps(1)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1]


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    with raises(ValueError, "JSON"):
        RunDirectory(tmp_path).write_json("figures.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path, umask):
    """safetensors writes files that only their owner can read."""
    before = os.umask(umask)
    try:
        folder = write_folder(
            tmp_path / "a", lambda folder: save_tensors({"x": torch.zeros(1)}, folder / "x.safetensors")
        )
    finally:
        os.umask(before)
    assert (folder / "x.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
