"""`plugins new` writes distributions that install and pass their tests as they are."""

import ast
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import tiny_gpt2

from ftengine.cli import main
from ftengine.cli.plugins_new import distribution, kinds
from ftengine.plugins.registry import KINDS, RECIPE_KEYS


def run(*command, **environ):
    done = subprocess.run(
        [sys.executable, "-m", *command], env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_a_template_of_every_kind():
    assert KINDS.keys() == set(kinds())


@pytest.fixture(scope="module")
def shout(ftengine, tmp_path_factory):
    """A distribution with a component of each kind, written and installed: its folder, and where it is installed."""
    folder, site = tmp_path_factory.mktemp("shout"), tmp_path_factory.mktemp("site")
    chosen = [word for kind in (*KINDS, "command", "preference-loss=outcry") for word in ("--kind", kind)]
    ftengine("plugins", "new", "shout", *chosen, "--output", folder)
    run("pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", site, folder)
    assert (site / "ftengine_shout" / "py.typed").is_file()
    return folder, site


@pytest.fixture
def installed(shout, monkeypatch):
    """Have what was written installed in this process for the length of a test."""
    monkeypatch.syspath_prepend(shout[1])
    monkeypatch.setattr(main, "_external", None)
    yield
    main._external = None
    for name in [name for name in sys.modules if name.partition(".")[0] == "ftengine_shout"]:
        del sys.modules[name]


@pytest.mark.slow
def test_what_is_written_passes_its_tests(shout):
    folder, site = shout
    path = os.pathsep.join([str(site), *sys.path])
    tested = run("pytest", "-q", "-p", "no:cacheprovider", folder / "tests", PYTHONPATH=path)
    assert "skipped" not in tested


@pytest.mark.slow
def test_what_is_written_is_listed(ftengine, installed):
    listed = ftengine("plugins", "list").stdout
    of_ours = [line.split()[:2] for line in listed.splitlines() if " ftengine-shout 0.1.0 " in line]
    assert sorted(of_ours) == sorted([["task", "outcry"], *([kind, "shout"] for kind in KINDS)])


@pytest.mark.slow
def test_what_is_written_passes_plugins_check(ftengine, installed):
    told = json.loads(ftengine("plugins", "check", "ftengine-shout", "--json").stdout)
    assert {result["component"] for result in told["results"]} == {
        "task outcry",
        *(f"{kind} shout" for kind in (*KINDS, "plugin", "command")),
    }
    assert told["counts"]["passed"] > len(KINDS)


def recipe_of_all(folder):
    """Return a recipe that names what was installed wherever it names a component; its evaluator reads labels."""
    content = {
        "model": {"source": "shout://gpt2", "loader": {"name": "shout", "folder": str(folder)}},
        "data": {"train": str(folder / "rows.jsonl"), "validation": 0.25},
        "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "precision": "float32", "warmup": 1},
        "evaluation": {"resamples": 100, "training_sample": None},
        "output": str(folder / "run"),
    }
    for kind, place in RECIPE_KEYS.items():
        if kind not in ("loader", "evaluator"):
            *sections, key = place.split(".")
            (content[sections[0]] if sections else content)[key] = "shout"
    rows = "".join(json.dumps({"text": f"The quick brown fox number {i} jumps."}) + "\n" for i in range(16)).encode()
    if "reader" in RECIPE_KEYS:
        content["data"]["train"] += ".gz"
        rows = gzip.compress(rows)
    Path(content["data"]["train"]).write_bytes(rows)
    return content


@pytest.mark.slow
def test_a_recipe_of_what_was_written_trains_evaluates_and_merges(ftengine, installed, tmp_path):
    tiny_gpt2(tmp_path / "gpt2")
    recipe = recipe_of_all(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ftengine("train", tmp_path / "recipe.yaml")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    table = (tmp_path / "run" / "losses.csv").read_text().splitlines()
    assert len(table) == len(losses) + 1
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert figures["tuned"]["loss"]["value"] < figures["base"]["loss"]["value"]
    findings = json.loads((tmp_path / "run" / "verdict.json").read_text())["findings"]
    assert any("The figures rest on 4 examples" in finding["text"] for finding in findings)
    ftengine("evaluate", tmp_path / "run")
    ftengine("merge", tmp_path / "run", tmp_path / "merged")


@pytest.mark.parametrize("kind", KINDS)
def test_a_distribution_of_one_kind_is_python_and_names_itself(kind):
    files = distribution("half-life", [(kind, "half-life")])
    assert f"ftengine_half_life/{kind.replace('-', '_')}.py" in files
    assert f"tests/test_{kind.replace('-', '_')}.py" in files
    for path, text in files.items():
        assert "$" not in text.replace("${{ matrix.python }}", "").replace("$ ", ""), path
        if path.endswith(".py"):
            ast.parse(text)
    assert 'half-life = "ftengine_half_life"' in files["pyproject.toml"]
    assert KINDS[kind][1] in files["ftengine_half_life/__init__.py"]
    assert "ftengine plugins check ftengine-half-life" in files[".github/workflows/test.yml"]


@pytest.mark.parametrize("folder", [True, False], ids=["output", "here"])
def test_the_next_commands_are_reported(ftengine, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    told = ftengine("plugins", "new", "shout", "--kind", "audit", *(["--output", "my plugin"] if folder else [])).stdout
    name, quoted = ("my plugin", "'my plugin'") if folder else ("ftengine-shout", "ftengine-shout")
    assert told.splitlines()[1:] == [
        f"  pip install -e './{name}[test]'",
        f"  python -m pytest {quoted}",
        "  ftengine plugins check ftengine-shout",
    ]
    assert (tmp_path / name / "pyproject.toml").is_file()


@pytest.mark.parametrize("name", ["Shout", "sh_out", "-x", "a--b", "a-", "8bit", "ü", "../up", "x" * 51, ""])
def test_what_cannot_name_a_plugin_is_refused(ftengine, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    line = ftengine("plugins", "new", "--kind", "audit", "--", name, code=2).stderr
    assert "small letters a to z" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("lora", "strategy", "a strategy named 'lora' exists already (in ftengine 0"),
        ("builtins", "strategy", "a module ftengine_builtins is installed already"),
        ("ftengine-shout", "stratgy", "Did you mean 'strategy'?"),
        ("shout", "strategy=lora", "a strategy named 'lora' exists already (in ftengine 0"),
        ("shout", "preference-loss=preference", "a task named 'preference' exists already (in ftengine 0"),
        ("shout", "command=train", "a command named 'train' exists already"),
        ("shout", "strategy=Mine", "'Mine' cannot name a plugin"),
        ("shout", "audit=shout audit", "'shout' twice"),
    ],
)
def test_what_is_taken_and_what_is_no_kind_is_refused(ftengine, tmp_path, monkeypatch, name, kind, told):
    monkeypatch.chdir(tmp_path)
    assert told in ftengine("plugins", "new", name, *(w for k in kind.split() for w in ("--kind", k)), code=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(ftengine, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    line = ftengine("plugins", "new", "shout", "--kind", "audit", "--output", tmp_path, code=2).stderr
    assert "is not empty" in line
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
