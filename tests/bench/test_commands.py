"""Seconds of commands are those of commands that did what they are to do."""

from pathlib import Path

import pytest
from expected import raises

ROOT = Path(__file__).parents[2]


@pytest.fixture
def commands(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import commands

    return commands


@pytest.mark.parametrize(
    ("name", "asked"), [("plan", ["plan", "nosuch.yaml"]), ("plan nosuch.yaml", ["plugins", "list"])]
)
def test_a_command_that_ends_otherwise_than_it_should_is_no_measurement(commands, monkeypatch, tmp_path, name, asked):
    assert set(commands.COMMANDS) > {name}
    monkeypatch.setitem(commands.COMMANDS, name, asked)
    with raises(SystemExit, f"`ftengine {name}`", "nosuch.yaml", "status"):
        commands.seconds(ROOT, name, tmp_path)


def test_the_command_that_is_to_fail_is_measured(commands, tmp_path):
    assert commands.seconds(ROOT, commands.FAILING, tmp_path) > 0
