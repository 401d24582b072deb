"""`--help` is quick because it loads nothing, and complete because it is read from what exists."""

import subprocess
import sys

import click
import pytest
from expected import golden

from ftengine.cli import main


def every_command(group=main, path=()):
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            yield (*path, name), command
            if isinstance(command, click.Group):
                yield from every_command(command, (*path, name))


ALL = [((), main), *every_command()]


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["train", "--help"], ["plugins", "list", "-h"], ["--version"]])
def test_help_loads_nothing_heavy(args):
    heavy = ("torch", "transformers", "pydantic", "rich", "datasets", "accelerate", "numpy", "yaml", "pluggy")
    script = f"""
import sys
from ftengine.cli import main
try:
    main({args!r})
except SystemExit as end:
    assert end.code == 0, end.code
print("LOADED", [name for name in {heavy!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["LOADED []"], done.stdout + done.stderr


def test_golden_help(ftengine):
    golden("help", "\n".join(f"$ ftengine {' '.join(path)}\n{ftengine(*path, '--help').stdout}" for path, _ in ALL))


@pytest.mark.parametrize(
    ("path", "command"), ALL, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_option_is_in_the_help_with_a_text(ftengine, path, command):
    text = ftengine(*path, "--help").stdout
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert all(flag in text for flag in parameter.opts)
        else:
            assert parameter.make_metavar(click.Context(command)).strip("[]") in text


@pytest.mark.parametrize(("path", "command"), [(p, c) for p, c in ALL if not isinstance(c, click.Group)])
def test_every_command_shows_an_example_with_options_that_exist(ftengine, path, command):
    text = ftengine(*path, "--help").stdout
    calls = [line.split() for line in text.splitlines() if line.startswith(f"    ftengine {' '.join(path)} ")]
    assert calls, f"no example of {' '.join(path)}"
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for call in calls for word in call if word.startswith("--")} <= known


def test_version(ftengine):
    import ftengine as package

    assert ftengine("--version").stdout == f"ftengine {package.__version__}\n"


def test_python_m_ftengine_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "ftengine", "trian"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'train'?" in done.stderr
