"""The distributions of plugins/ as pip installs them, in a folder that only some tests put on the path.

An environment with them installed would show them to every test: in `plugins list`, in messages that name strategies.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ftengine.cli import main

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = sorted(path.name for path in (ROOT / "plugins").glob("*-*"))


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A folder with copies of the distributions' sources."""
    folder = tmp_path_factory.mktemp("sources")
    for name in DISTRIBUTIONS:
        unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
        shutil.copytree(ROOT / "plugins" / name, folder / name, ignore=unwanted)
    return folder


@pytest.fixture(scope="session")
def site(sources, tmp_path_factory):
    """A folder with the distributions, installed from the copies."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    command += ["--target", folder, *(sources / name for name in DISTRIBUTIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def installed(site, monkeypatch):
    """The distributions are installed."""
    packages = {name.replace("-", "_") for name in DISTRIBUTIONS}
    for module in [name for name in sys.modules if name.partition(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(main, "_external", None)  # commands that were found before


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> Path:
    """Short texts with labels."""
    rows = [
        {"text": f"The {thing} number {i} was {word}.", "label": label}
        for i in range(10)
        for thing, word, label in (("film", "wonderful", "good"), ("match", "terrible", "bad"))
    ]
    return _write(tmp_path_factory.mktemp("data") / "reviews.jsonl", rows)


@pytest.fixture(scope="session")
def answers(tmp_path_factory) -> Path:
    """Questions with answers."""
    rows = [{"prompt": f"What is {a} + {b}?", "completion": f"It is {a + b}."} for a in range(4) for b in range(5)]
    return _write(tmp_path_factory.mktemp("data") / "answers.jsonl", rows)


def _write(file: Path, rows) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file
