"""`plugins new` writes distributions that install and pass their tests as they are."""

import ast
import os
import subprocess
import sys

import pytest

from ftengine.cli.plugins_new import distribution, kinds
from ftengine.plugins.registry import KINDS

STAND_IN = """
import ftengine.testing
if not hasattr(ftengine.testing, "check_component"):
    ftengine.testing.check_component = lambda component: None
"""


def run(*command, **environ):
    done = subprocess.run(
        [sys.executable, "-m", *command], env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_a_template_of_every_kind():
    assert KINDS.keys() <= set(kinds())


def test_what_is_written_installs_and_passes_its_tests(ftengine, tmp_path):
    """All kinds in one distribution, so that one process tests them all."""
    folder, site = tmp_path / "ftengine-shout", tmp_path / "site"
    chosen = [word for kind in KINDS for word in ("--kind", kind)]
    ftengine("plugins", "new", "shout", *chosen, "--output", folder)
    run("pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", site, folder)
    assert (site / "ftengine_shout" / "py.typed").is_file()
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    path = os.pathsep.join([str(site), str(tmp_path), *sys.path])
    tested = run("pytest", "-q", "-p", "stand_in", "-p", "no:cacheprovider", folder / "tests", PYTHONPATH=path)
    assert "skipped" not in tested
    listed = run("ftengine", "plugins", "list", PYTHONPATH=path)
    of_ours = [line.split()[:2] for line in listed.splitlines() if " ftengine-shout 0.1.0 " in line]
    assert sorted(of_ours) == sorted([kind, "shout"] for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_distribution_of_one_kind_is_python_and_names_itself(kind):
    files = distribution("half-life", [kind])
    assert f"ftengine_half_life/{kind}.py" in files
    assert f"tests/test_{kind}.py" in files
    for path, text in files.items():
        assert "$" not in text.replace("${{ matrix.python }}", "").replace("$ ", ""), path
        if path.endswith(".py"):
            ast.parse(text)
    assert 'half-life = "ftengine_half_life"' in files["pyproject.toml"]
    assert KINDS[kind][1] in files["ftengine_half_life/__init__.py"]
    assert "ftengine plugins check ftengine-half-life" in files[".github/workflows/test.yml"]


@pytest.mark.parametrize("folder", [True, False], ids=["output", "here"])
def test_the_next_commands_are_told(ftengine, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    told = ftengine("plugins", "new", "shout", "--kind", "audit", *(["--output", "my plugin"] if folder else [])).stdout
    assert told.splitlines()[1:] == (
        [
            "  pip install -e './my plugin[test]'",
            "  python -m pytest 'my plugin'",
            "  ftengine plugins check ftengine-shout",
        ]
        if folder
        else [
            "  pip install -e './ftengine-shout[test]'",
            "  python -m pytest ftengine-shout",
            "  ftengine plugins check ftengine-shout",
        ]
    )
    assert (tmp_path / ("my plugin" if folder else "ftengine-shout") / "pyproject.toml").is_file()


@pytest.mark.parametrize("name", ["Shout", "sh_out", "-x", "a--b", "a-", "8bit", "ü", "../up", "x" * 51, ""])
def test_what_cannot_name_a_plugin_is_refused(ftengine, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    line = ftengine("plugins", "new", "--kind", "audit", "--", name, code=2).stderr
    assert "small letters of a to z" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("lora", "strategy", "there is a strategy named 'lora' already (of ftengine 0"),
        ("builtins", "strategy", "a module ftengine_builtins is installed already"),
        ("ftengine-shout", "stratgy", "Did you mean 'strategy'?"),
    ],
)
def test_what_is_taken_and_what_is_no_kind_is_refused(ftengine, tmp_path, monkeypatch, name, kind, told):
    monkeypatch.chdir(tmp_path)
    assert told in ftengine("plugins", "new", name, "--kind", kind, code=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(ftengine, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    line = ftengine("plugins", "new", "shout", "--kind", "audit", "--output", tmp_path, code=2).stderr
    assert "is not empty" in line
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
