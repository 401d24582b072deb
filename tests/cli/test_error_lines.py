"""Every failure is one `error:` line on stderr and an exit status that says whose fault it is."""

import errno
import os
import subprocess
import sys

import click
import numpy as np
import pytest
import torch

from ftengine.cli import COMMANDS
from ftengine.errors import InputError, TrainingError


@pytest.fixture
def failing(monkeypatch):
    """A command that raises what it is given."""

    def make(error):
        @click.command()
        def fail():
            raise error

        monkeypatch.setattr(sys.modules[__name__], "command_that_fails", fail, raising=False)
        monkeypatch.setitem(COMMANDS, "fail", (f"{__name__}:command_that_fails", "Fail."))

    return make


def error_line(result):
    """Return the one line on stderr."""
    assert result.stdout == ""
    lines = result.stderr.strip("\n").split("\n")
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("key 'x' is 3; it must be 4."), 2, "error: key 'x' is 3; it must be 4."),
        (TrainingError("the loss is nan."), 1, "error: the loss is nan."),
        (ValueError("odd"), 1, "error: unexpected ValueError: odd (run with --debug for the traceback)"),
        (
            ModuleNotFoundError("No module named 'optuna.storages'", name="optuna.storages"),
            1,
            "error: the Python module 'optuna' is needed and not installed (run with --debug to see what needs it).",
        ),
        (
            OSError(errno.ENOSPC, "full", "/tmp/x"),
            2,
            "error: the disk is full (/tmp/x). Make room, or set TMPDIR to another folder. Complete files are kept.",
        ),
        (
            OSError(errno.ELOOP, "odd"),
            1,
            f"error: unexpected OSError: [Errno {errno.ELOOP}] odd (run with --debug for the traceback)",
        ),
        (InputError("two\nlines\x1b[31m"), 2, "error: two lines\\x1b[31m"),
    ],
)
def test_an_exception_becomes_one_line_and_a_status(ftengine, failing, error, code, text):
    failing(error)
    assert error_line(ftengine("fail", code=code)) == text


@pytest.mark.parametrize("limit", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EMFILE", "ENFILE"])
def test_a_limit_of_the_system_is_reported_as_one(ftengine, failing, limit):
    failing(OSError(getattr(errno, limit), "odd", "/tmp/x"))
    line = error_line(ftengine("fail", code=2))
    assert "unexpected" not in line
    assert "(/tmp/x)" in line


@pytest.mark.parametrize(
    "allocate", [lambda: bytearray(1 << 60), lambda: torch.empty(1 << 55), lambda: np.zeros(1 << 55)]
)
def test_memory_that_is_refused_is_reported_with_what_to_do(ftengine, failing, allocate):
    with pytest.raises((MemoryError, RuntimeError)) as refused:
        allocate()
    failing(refused.value)
    line = error_line(ftengine("fail", code=1))
    assert line.startswith("error: out of memory")
    assert "Lower train.batch_size" in line


def test_debug_shows_the_traceback_and_keeps_the_status(ftengine, failing):
    failing(InputError("odd."))
    result = ftengine("--debug", "fail", code=2)
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: odd.\n")


def test_interrupting_exits_with_130_without_a_traceback(ftengine, failing):
    failing(KeyboardInterrupt())
    result = ftengine("fail", code=130)
    assert result.stderr.strip() == "error: interrupted."


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["trian"], ["'trian'", "Did you mean 'train'?", "`ftengine --help`"]),
        (["train", "r.yaml", "--resum"], ["'--resum'", "'--resume'", "`ftengine train --help`"]),
        (["train"], ["RECIPE"]),
        (["plugins", "lst"], ["'lst'", "Did you mean 'list'?"]),
        (["plugins", "show", "lroa"], ["'lroa'", "'lora'"]),
        (["plugins", "list", "--kind", "tsk"], ["'tsk'", "Did you mean 'task'?", "strategy"]),
        (["merge", "run", "out", "--dtype", "int8"], ["int8", "float32"]),
        (["predict", "run"], ["--input"]),
        (["predict", "run", "--input", "x", "--output", "y", "--option", "tokens"], ["'tokens'", "key=value"]),
        (["predict", "run", "--input", "x", "--output", "y", "--option", "a={"], ["'{'", "YAML"]),
        (["predict", "run", "--input", "x", "--output", "y", "--option", "a=2020-13-45"], ["'2020-13-45'", "YAML"]),
        (["predict", "run", "--input", "x", "--resume"], ["--output"]),
        (["evaluate", "no/such/run"], ["no/such/run", "does not exist"]),
        (["plan", "no.yaml"], ["no.yaml", "ftengine init"]),
        (["train", "no.yaml", "--json"], ["no.yaml"]),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_to_do(ftengine, args, expected):
    line = error_line(ftengine(*args, code=2))
    assert [text for text in expected if text not in line] == []


def test_called_with_nothing_it_shows_the_help(ftengine):
    result = ftengine(code=2)
    assert "Commands:" in result.output
    assert "error:" not in result.output


def test_other_libraries_are_silent_unless_debugging(monkeypatch, tmp_path):
    script = """
import logging, sys, warnings
import click, ftengine.cli
@click.command()
def noisy():
    warnings.warn("a warning")
    logging.getLogger("some.library").warning("an advice")
    logging.getLogger("some.library").error("a failure")
ftengine.cli.COMMANDS["noisy"] = ("__main__:noisy", "Make noise.")
ftengine.cli.main(sys.argv[1:])
"""
    quiet, loud = (
        subprocess.run([sys.executable, "-c", script, *flags, "noisy"], capture_output=True, text=True, check=True)
        for flags in ([], ["--debug"])
    )
    assert "a warning" in loud.stderr
    assert "an advice" in loud.stderr
    assert quiet.stderr == "a failure\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise there")
@pytest.mark.parametrize("printing", ["page().print(table(['a'], [['b']]))", "print_json([1])", "click.echo('a')"])
def test_a_broken_pipe_leaves_no_traceback(printing):
    script = f"""
import click, ftengine.cli
from ftengine.cli.page import page, print_json, table
@click.command()
def speak():
    {printing}
ftengine.cli.COMMANDS["speak"] = ("__main__:speak", "Speak.")
ftengine.cli.main(["speak"])
"""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as broken:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=broken, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr == ""


def test_text_that_stdout_cannot_encode_is_escaped():
    script = """
import click, sys, ftengine.cli
@click.command()
def speak():
    click.echo("π ±")
ftengine.cli.COMMANDS["speak"] = ("__main__:speak", "Speak.")
ftengine.cli.main(["speak"])
"""
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stdout.decode("latin-1")) == (0, "\\u03c0 ±\n")
