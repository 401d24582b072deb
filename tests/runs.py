"""What tests of whole runs share: curves, listeners, and runs that lose their process."""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from ftengine import Recipe, Run, fine_tune
from ftengine.api import SilentListener
from ftengine.cli import main
from ftengine.identity import file_hashes
from ftengine.plugins.registry import Registry
from ftengine.run.directory import RunDirectory
from ftengine.run.parent import PARENT
from ftengine.run.records import TrainedPart
from ftengine.run.seal import seal

MEASURED = {"seconds", "examples_per_second", "tokens_per_second", "peak_memory_bytes"}
MEASURED |= {"seconds_draw", "seconds_score", "seconds_learn"}
"""What no two runs have alike."""


def curve(path: str | Path) -> list[dict[str, Any]]:
    """Return what a run wrote at each step, without the time and memory that it took."""
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in RunDirectory(path).metrics()]


def losses(run: Run) -> list[float]:
    """Return the training loss of each step."""
    return [line["loss"] for line in run.metrics if "loss" in line]


@pytest.fixture(scope="module", autouse=True)
def without_drawings():
    """Leave the drawings out of reports where runs are about something else: a tenth of a tiny run's time.

    For the conftest.py of a folder; tests of reports, of commands and of documents draw.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ftengine.report.draw.line_svg", lambda *_: "")
        yield


def save_anew(run: str | Path) -> None:
    """Have a finished run take its trained part and records as they are now, as though it had always had them."""
    directory = RunDirectory(run)
    files = {name: one for name, one in file_hashes(directory.trained).items() if name != TrainedPart.file}
    folder = RunDirectory(directory.trained)
    TrainedPart.read(folder).model_copy(update={"files": files}).write(folder)
    seal(directory)


class Heard(SilentListener):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.figures: list[dict[str, float]] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.figures += [figures] if figures else []


class Interruption(BaseException):
    """A lost machine; no code of a run may take it for a failure of its own."""


class Interrupting(SilentListener):
    """Stops a run after some training steps, before the next one is validated or saved."""

    def __init__(self, steps: int) -> None:
        self.left, self.training = steps, False

    def phase(self, name: str, total: int | None = None) -> None:
        self.training = name == "train"

    def advance(self, steps: int = 1, **figures: float) -> None:
        if self.training and figures:
            self.left -= 1
            if self.left < 0:
                raise Interruption


def interrupt(recipe: Recipe, *, after: int, resume: bool = False, registry: Registry | None = None) -> None:
    """Train until some steps are done, then stop for good."""
    with pytest.raises(Interruption):
        fine_tune(recipe, resume=resume, listener=Interrupting(after), registry=registry)
    assert RunDirectory(recipe.output).is_run()
    assert not RunDirectory(recipe.output).finished


class CommandHere:
    """Stands in for `subprocess.Popen` where ftengine is started: the command runs in this process.

    Another process takes seconds to import torch. That one is really started, tests/cli/test_command_compare.py sees.
    """

    def __init__(self, line: list[str], **options: Any) -> None:
        assert line[:3] == [sys.executable, "-m", "ftengine"], line
        assert (options["stdin"], PARENT in options["env"]) == (
            subprocess.PIPE,
            True,
        )  # so that it ends with its parent
        result = CliRunner().invoke(main, line[3:], prog_name="ftengine")
        self.stderr, self.returncode = io.StringIO(result.stderr), result.exit_code

    def __enter__(self) -> CommandHere:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def start_commands_here(patch: pytest.MonkeyPatch, *, after: int = 0) -> list[list[str]]:
    """Have the runs of a comparison or a cross-validation trained here, all but the first few; return the commands."""
    started: list[list[str]] = []

    def start(line: list[str], **options: Any) -> Any:
        started.append(line)
        return (subprocess.Popen if len(started) <= after else CommandHere)(line, **options)

    class Processes:
        Popen, PIPE, DEVNULL = staticmethod(start), subprocess.PIPE, subprocess.DEVNULL

    patch.setattr("ftengine.engine.subprocess_runs.subprocess", Processes)
    return started


class Forked:
    """A function in a process of its own, which has what this one imported; what it says goes to a file.

    Args:
        function: is called; its SystemExit is the exit status.
        folder: where its stderr goes.
    """

    def __init__(self, function: Callable[[], Any], folder: Path) -> None:
        self._said = folder / "said.txt"

        def run() -> None:
            torch.set_num_threads(1)  # those of a pool are not forked
            with self._said.open("w", buffering=1) as sys.stderr:
                function()

        self._process = multiprocessing.get_context("fork").Process(target=run)
        self._process.start()

    def end_after_step(self, step: int, run: RunDirectory, signal: int) -> tuple[int | None, str]:
        """Send a signal once the run has written a step; return the exit status and what was said."""
        deadline = time.monotonic() + 120
        while not any(line["step"] >= step for line in run.metrics()):
            assert self._process.is_alive(), self._said.read_text()
            assert time.monotonic() < deadline, "slow"
            time.sleep(0.02)
        os.kill(self._process.pid, signal)
        return self.ended()

    def ended(self) -> tuple[int | None, str]:
        """Wait; return the exit status, None after a minute, and what was said."""
        self._process.join(60)
        return self._process.exitcode, self._said.read_text()
