"""Shells complete commands, files and the names of what is installed, without loading it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from cli_samples import ENTRY, strategy
from click.shell_completion import ShellComplete

from ftengine.cli import main, plugin_cache
from ftengine.plugins.registry import Registry

BASH = shutil.which("bash")


def completed(*words):
    """Return what is completed of the last word, by type where that is no plain text."""
    found = ShellComplete(main, {}, "ftengine", "_FTENGINE_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [item.value if item.type == "plain" else item.type for item in found]


def names(kind):
    return [entry.name for entry in Registry().entries(kind)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("plugins", "show", "lor"), ["lora"]),
        (("plugins", "show", "--kind", "task", ""), names("task")),
        (("plugins", "list", "--kind", "strat"), ["strategy"]),
        (("plugins", "check", "ftengi"), ["ftengine"]),
        (("plugins", "check", "./"), ["dir"]),
        (("init", "--task", "causal"), ["causal-lm"]),
        (("init", "--strategy", ""), names("strategy")),
        (("train", "recipe.yaml", "--set", "strategy=p"), ["strategy=prefix", "strategy=prompt"]),
        (("train", "rec"), ["file"]),
        (("evaluate", "runs/"), ["file"]),
        (("completion", "z"), ["zsh"]),
    ],
    ids=" ".join,
)
def test_what_a_shell_completes(words, expected):
    assert completed(*words) == expected


def test_a_new_plugin_is_completed_and_a_blocked_one_is_not(distribution, monkeypatch):
    assert "thing" not in completed("plugins", "show", "")
    distribution(strategy(), ENTRY)
    assert "thing" in completed("plugins", "show", "")
    monkeypatch.setenv("FTENGINE_BLOCK_PLUGINS", "ftengine-thing")
    assert "thing" not in completed("plugins", "show", "")


@pytest.mark.parametrize("cache", ["nowhere", "damaged"])
def test_a_cache_that_cannot_be_used_does_not_matter(tmp_path, monkeypatch, cache):
    if cache == "nowhere":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path / "file" / "cache"))
        assert completed("plugins", "show", "lor") == []
    else:
        monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path))
        plugin_cache._file().write_text("[")
        assert completed("plugins", "show", "lor") == ["lora"]
        content = json.loads(plugin_cache._file().read_text())
        del content["listing"]["components"][0]["name"], content["listing"]["plugins"]
        plugin_cache._file().write_text(json.dumps(content))
        assert completed("plugins", "show", "lor") == ["lora"]


@pytest.mark.slow
def test_names_are_completed_without_loading_what_has_them(tmp_path):
    """Torch alone would take longer than anyone waits for a completion."""
    asked = {"FTENGINE_CACHE": str(tmp_path)} | {
        "_FTENGINE_COMPLETE": "bash_complete",
        "COMP_WORDS": "ftengine plugins show lor",
        "COMP_CWORD": "3",
    }
    script = """
import sys
from ftengine.cli import main
try:
    main(prog_name="ftengine")
except SystemExit:
    pass
heavy = ("torch", "transformers", "pydantic", "rich", "numpy", "yaml", "pluggy")
print("LOADED", [name for name in heavy if name in sys.modules])
"""
    for _ in ("asks what is installed", "knows it"):
        done = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **asked}, capture_output=True, text=True, check=False
        )
    assert done.stdout.split("\n")[:2] == ["plain,lora", "LOADED []"], done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_for_its_completions(ftengine, shell):
    script = ftengine("completion", shell).stdout
    assert f"_FTENGINE_COMPLETE={shell}_complete" in script


BASH_TRIES = """
source "$1"
try() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _ftengine_completion ftengine
    echo "${COMPREPLY[*]}"
}
try ftengine train x.yaml --set strategy = lo
try ftengine train x.yaml --set strategy =
try ftengine train x.yaml --set strategy=lo
try ftengine cross
"""
"""Bash gives `strategy=lo` as three words, and puts what it gets behind the `=`; quoted it is one."""


@pytest.mark.slow
@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_bash_completes_with_the_script(ftengine, tmp_path):
    (tmp_path / "script").write_text(ftengine("completion", "bash").stdout)
    program = tmp_path / "ftengine"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom ftengine.cli import main\nsys.exit(main(prog_name='ftengine'))\n"
    )
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    python_path = os.pathsep.join(sys.path)
    assert completed("plugins", "show", "lor") == ["lora"]  # from then on the names are in the cache
    done = subprocess.run(
        [BASH, "-c", BASH_TRIES, "bash", tmp_path / "script"],
        env={**os.environ, "PATH": path, "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["lora", " ".join(names("strategy")), "strategy=lora", "cross-validate"], done
