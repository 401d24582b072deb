"""`doctor` says what is there and what to repair, also where something is broken."""

import json
import re
import subprocess
import sys
from importlib import metadata

import pytest
from cli_samples import ENTRY
from expected import golden

from ftengine.run import environment


def test_golden_sound_installation_has_no_problems(ftengine):
    found = json.loads(ftengine("doctor", "--json").stdout)
    assert found["problems"] == []
    assert found["versions"]["torch"]
    assert found["precision"]["reason"]
    assert found["kernels"]["cpu"]["backend"] in ("compiled", "reference")
    text = ftengine("doctor").stdout
    for measured in (found["versions"]["torch"], found["build"]["line"], found["kernels"]["cpu"]["reason"]):
        assert measured in text
    machine = r"(?m)^(versions|machine|processor|memory|GPU|precision|build|on \w+|cache)  .*"
    golden("doctor", re.sub(machine, r"\1", text))


@pytest.mark.parametrize(
    ("entry", "fact"),
    [
        (ENTRY, "ValueError: torn"),
        ("[ftengine.commands]\nsay = ftengine_thing:command\n", "'say' of ftengine-thing 1.2"),
    ],
)
def test_a_broken_plugin_or_command_is_a_problem(ftengine, distribution, entry, fact):
    distribution("raise ValueError('torn')", entry)
    (problem,) = json.loads(ftengine("doctor", "--json", code=1).stdout)["problems"]
    assert fact in problem


def test_a_plugin_that_is_slow_to_import_or_prints_is_a_problem(ftengine, distribution, monkeypatch):
    monkeypatch.setattr("ftengine.plugins.discovery.MOST_SECONDS", 0.02)
    body = "import time\nfrom ftengine import hookimpl\nprint('hello')\ntime.sleep(0.03)\n"
    distribution(f"{body}@hookimpl\ndef ftengine_audits():\n    print('there')\n    return []\n", ENTRY)
    done = ftengine("doctor", "--json", code=1)  # stdout is JSON alone
    slow, prints = (one for one in json.loads(done.stdout)["problems"] if "'thing' of ftengine-thing 1.2" in one)
    assert " s to import" in slow
    assert "prints 'hello" in prints
    assert "there" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["torch", "pluggy"])
def test_a_broken_library_is_reported_and_the_rest_is_still_examined(missing):
    script = f"""
import sys
sys.modules[{missing!r}] = None  # what Python does for a module that cannot be imported
from ftengine.cli import main
main(["doctor", "--json", "--recheck"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert any(missing in problem for problem in found["problems"])
    assert found["requirements"]["torch"]
    assert found["build"]["line"]


def test_an_outdated_requirement_is_a_problem_with_its_remedy(ftengine, monkeypatch):
    version = metadata.version
    monkeypatch.setattr(environment, "_version", environment._version.__wrapped__)  # nothing of this stays known
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "safetensors" else version(name))
    problems = json.loads(ftengine("doctor", "--json", code=1).stdout)["problems"]
    assert any("safetensors is 0.1" in problem and "pip install" in problem for problem in problems)
