"""The one command that measures in bfloat16."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bfloat16(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bfloat16

    return bfloat16


@pytest.fixture
def started(monkeypatch):
    """Return the commands that are started; each writes its file."""
    commands = []

    def run(command, check):
        commands.append(command)
        Path(command[command.index("--json") + 1]).write_text("{}")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def measure(monkeypatch, module, native, *arguments):
    monkeypatch.setattr(module, "native_bfloat16", lambda device: (native, "as the test says"))
    monkeypatch.setattr(sys, "argv", ["bfloat16.py", *arguments])
    module.main()


def test_a_run_that_was_interrupted_goes_on_and_scripts_know_what_they_are_told(
    bfloat16, started, tmp_path, monkeypatch
):
    (tmp_path / "chat-bf16-batch-8.json").write_text("{}")
    measure(monkeypatch, bfloat16, True, "--results", str(tmp_path), "--quick")
    assert len(started) == 5
    for _, script, *told in started:
        known = set(re.findall(r'add_argument\("(--[a-z-]+)"', Path(script).read_text(encoding="utf-8")))
        assert {x for x in told if x.startswith("--")} <= known, script
    measure(monkeypatch, bfloat16, True, "--results", str(tmp_path))
    assert len(started) == 5


def test_without_bfloat16_nothing_is_measured_unless_asked(bfloat16, started, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        measure(monkeypatch, bfloat16, False, "--results", str(tmp_path))
    assert not started
    measure(monkeypatch, bfloat16, False, "--results", str(tmp_path), "--only", "shared_prefix", "--anyway")
    assert len(started) == 1
