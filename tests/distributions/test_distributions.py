"""Each distribution is installed by itself, offers its strategies to the command line, and is no part of ftengine's."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from setuptools import find_namespace_packages

from ftengine.cli import main
from ftengine.plugins.registry import Registry
from ftengine.run.recipe_schema import recipe_schema

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings the latter


ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = sorted(path.name for path in (ROOT / "plugins").glob("*-*"))

BESIDE = ("README.md", "pyproject.toml", "tests")
"""What a distribution's folder holds beside its package."""


def described(name):
    return tomllib.loads((ROOT / "plugins" / name / "pyproject.toml").read_text(encoding="utf-8"))


def test_ftengines_own_wheel_has_none_of_them():
    found = described("..")["tool"]["setuptools"]["packages"]["find"]
    packages = {
        package.partition(".")[0]
        for where in found["where"]
        for package in find_namespace_packages(ROOT / where, include=found["include"])
    }
    assert packages == {"ftengine", "ftengine_bench", "ftengine_builtins"}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_distribution_installs_its_package_and_nothing_else(name, site):
    package = name.replace("-", "_")
    sources = ROOT / "plugins" / name / package
    (found,) = importlib.metadata.distributions(name=name, path=[str(site)])
    files = {str(file) for file in found.files if "__pycache__" not in file.parts}
    assert {file for file in files if "dist-info" not in file} == {
        f"{package}/{file.relative_to(sources)}"
        for file in sources.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert (sources / "py.typed").is_file()
    assert found.metadata["License-Expression"] == "Apache-2.0"
    assert {entry.group for entry in found.entry_points} <= {"ftengine", "ftengine.commands"}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_an_installation_leaves_nothing_beside_the_sources(name, site, sources):
    """pytest has the sources on its path: metadata that lay there would be a plugin in every other test."""
    assert {path.name for path in (sources / name).iterdir()} == {name.replace("-", "_"), *BESIDE}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_wrong_requirement_is_detected(name):
    """Requirements are not installed here, so they are compared with what there is."""
    import packaging.requirements

    for text in described(name)["project"]["dependencies"]:
        requirement = packaging.requirements.Requirement(text)
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)


def test_without_installing_they_are_not_offered():
    result = CliRunner().invoke(main, ["plugins", "show", "bitfit"])
    assert result.exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "model", "task", "rows", "takes"),
    [
        ("bitfit", "bert_folder", "text-classification", "reviews", "bias"),
        ("{name: peft-vera, r: 8, target_modules: [q_proj]}", "llama_folder", "causal-lm", "answers", "q_proj"),
    ],
    ids=["bitfit", "peft-vera"],
)
def test_the_command_line_lists_plans_and_trains(strategy, model, task, rows, takes, site, tmp_path, request):
    def ftengine(*arguments):
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-m", "ftengine", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    content = {
        "model": {"source": str(request.getfixturevalue(model))},
        "task": task,
        "data": {"train": str(request.getfixturevalue(rows)), "validation": 0.2},
        "strategy": yaml.safe_load(strategy),
        "train": {"max_steps": 2, "batch_size": 4, "learning_rate": 0.01},
        "output": "run",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    listed = ftengine("plugins", "list")
    offering = {name for name in DISTRIBUTIONS if "ftengine" in described(name)["project"]["entry-points"]}
    assert all(name in listed.split() for name in (*offering, "bitfit", "lm-eval", "peft-ia3", "peft-vera"))
    commands = ftengine("--help").partition("Commands of plugins:")[2]
    assert {line.split()[0] for line in commands.splitlines() if line.strip()} >= {"tune"}
    planned = json.loads(ftengine("plan", "recipe.yaml", "--no-measure", "--json"))
    assert takes in planned["targets"]
    assert planned["model"]["trainable_parameters"] > 0
    ftengine("train", "recipe.yaml")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text(encoding="utf-8"))
    assert {plugin["distribution"] for plugin in environment["plugins"]} >= offering


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["dictation", "eyes"])
def test_the_example_of_a_distribution_is_accepted(name):
    """tests/cli/test_schema.py reads the other examples' recipes, whose components are ftengine's own."""
    recipe = yaml.safe_load((ROOT / "examples" / name / f"{name}.yaml").read_text(encoding="utf-8"))
    Draft202012Validator(recipe_schema(Registry())).validate(recipe)
