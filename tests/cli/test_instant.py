"""What needs no model answers without torch, and a change of what is installed is seen at once."""

import json
import os
import subprocess
import sys

import pytest
from cli_samples import ENTRY, strategy

COMMANDS = [
    ["plugins", "list"],
    ["plugins", "list", "--kind", "strategy", "--json"],
    ["plugins", "show", "lora"],
    ["doctor"],
    ["schema"],
    ["init", "begun.yaml"],
    ["init", "from-data.yaml", "--data", "rows.csv"],
    ["plan", "nosuch.yaml"],
    ["report", "nosuch"],
    ["completion", "bash"],
    ["--help"],
]

SCRIPT = """
import contextlib, io, json, sys
from ftengine.cli import main
for args in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(args)
        except SystemExit as end:
            status = end.code or 0
    print(" ".join(args), status, [name for name in ("torch", "transformers", "datasets") if name in sys.modules])
"""


@pytest.fixture
def edited(tmp_path):
    """Write a plugin's module anew, as its author does."""

    def edit(body):
        file = tmp_path / "ftengine_thing.py"
        before = file.stat().st_mtime_ns
        file.write_text(body)
        os.utime(file, ns=(before + 1_000_000, before + 1_000_000))
        sys.modules.pop("ftengine_thing", None)

    return edit


def names(ftengine, code=0):
    listed = json.loads(ftengine("plugins", "list", "--json", code=code).stdout)
    return {one["name"] for one in listed["components"]}, listed["problems"]


@pytest.mark.slow
def test_what_needs_no_model_imports_neither_torch_nor_datasets(tmp_path, monkeypatch):
    """In processes of their own: what tests have imported counts as a part of what is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.csv").write_text("text,label\ngood,a\nbad,b\n")
    for commands in ([["plugins", "list"], ["schema"], ["doctor"]], COMMANDS):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(commands)], capture_output=True, text=True, check=False
        )
    status = {"plan": 2, "report": 2}
    expected = [f"{' '.join(args)} {status.get(args[0], 0)} []" for args in COMMANDS]
    assert done.stdout.splitlines() == expected, done.stderr


def test_an_edited_plugin_is_listed_as_it_is_now(ftengine, distribution, edited):
    distribution(strategy(), ENTRY)
    assert "thing" in names(ftengine)[0]
    edited(strategy("other-thing"))
    found, problems = names(ftengine)
    assert "other-thing" in found
    assert "thing" not in found
    assert problems == []
    schema = json.loads(ftengine("schema").stdout)
    assert "strategy.other-thing" in schema["$defs"]


@pytest.mark.slow
def test_a_plugin_that_breaks_is_a_problem_though_it_was_sound(ftengine, distribution, edited):
    distribution(strategy(), ENTRY)
    assert names(ftengine)[1] == []
    assert ftengine("doctor", "--json").exit_code == 0
    edited("raise ValueError('torn')")
    for command in ("plugins list --json", "doctor --json", "plugins list --json"):
        (problem,) = json.loads(ftengine(*command.split(), code=1).stdout)["problems"]
        assert "'thing' of ftengine-thing 1.2" in problem
        assert "ValueError: torn" in problem


@pytest.mark.slow
def test_doctor_checks_again_where_settings_changed_or_it_is_asked_to(ftengine, monkeypatch):
    def machine():
        return json.loads(ftengine("doctor", "--json").stdout)["hardware"]["processor"]

    before = machine()
    monkeypatch.setattr("ftengine.run.environment._processor", lambda: "another")
    assert machine() == before
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine() == "another"
    monkeypatch.setattr("ftengine.run.environment._processor", lambda: "a third")
    assert json.loads(ftengine("doctor", "--json", "--recheck").stdout)["hardware"]["processor"] == "a third"
