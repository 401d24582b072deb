"""benchmarks/gpu_check.sh, whose steps are played by a python that only says what it was asked."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
PLAYED = """#!/usr/bin/env bash
# Plays a python on a machine with a GPU; fails at what FAILING says.
case "$*" in
    -) cat >/dev/null ;;  # nothing is missing
    *get_device_capability*) echo 90 ;;
    *find_spec*) exit 1 ;;  # nobody else's package is installed
    *) echo "$*"; [ -z "${FAILING:-}" ] || [[ "$*" != *"$FAILING"* ]] ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


@pytest.fixture
def check(tmp_path):
    """Run the script on a played machine: check(code, **environment) returns what OUT then holds."""
    for name, text in (("python3", PLAYED), ("nvcc", "#!/bin/sh\necho nvcc\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(code, **environment):
        out = tmp_path / "out"
        given = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CXX": "true", **environment}
        given.pop("PYTHON", None)
        done = subprocess.run(
            [shutil.which("bash"), SCRIPT, out], env=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return {file.name: file.read_text() for file in out.iterdir()}

    return run


def test_every_step_runs_for_this_gpu_alone(check):
    out = check(0)
    assert "plan().build" in out["build.log"]
    assert "-m gpu" in out["tests.log"]
    assert "--shape 8192x4096x4096" in out["kernels-target.txt"]
    assert "--tokens 8192" in out["kernels-large.txt"]
    assert "--launch graph" in out["kernels-graphs.txt"]
    assert "torch-compile" in out["kernels-compile.txt"]
    assert out["summary.txt"].count("ok: ") == 7
    assert "everything succeeded" in out["summary.txt"]


@pytest.mark.parametrize(
    ("failing", "name", "after"),
    [
        ("-m gpu", "tests", True),
        ("frozen,eager", "target small large", True),
        ("--launch graph", "graphs", True),
        ("build", "build", False),
    ],
)
def test_a_step_that_fails_is_named_and_fails_the_whole(check, failing, name, after):
    out = check(1, FAILING=failing)
    assert f"failed: {name.partition(' ')[0]}: exit status 1" in out["summary.txt"]
    assert out["summary.txt"].splitlines()[-1].endswith(f" s: {name}")
    assert ("kernels-large.txt" in out) == after  # without a build there is nothing to measure


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path):
    given = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["bash", SCRIPT, tmp_path / "out"], env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert done.stdout == summary
    assert all(line.startswith("missing: ") for line in summary.splitlines())
    assert ("is built without CUDA" if torch.version.cuda is None else "finds no NVIDIA GPU") in summary


@pytest.mark.slow
def test_its_tests_begin_without_what_a_bare_machine_lacks(check):
    """With torch and pytest alone: no plugins, and none of what tests/conftest.py imports."""
    arguments = shlex.split(check(0)["tests.log"])
    assert arguments[:2] == ["-m", "pytest"]
    absent = ("yaml", "hypothesis", "numpy", "click", "transformers", "accelerate", "pydantic")
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); import pytest; sys.exit(pytest.main())"
    command = [sys.executable, "-c", program, "--collect-only", "-q", *arguments[2:]]
    given = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'plugins'}"}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_gpu.py" in done.stdout
