"""Ctrl-C and SIGTERM while a command works: what is saved, and how to go on."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftengine.api import Listener


SAVED = "finished runs and the last checkpoint of the other are saved; the same command goes on from there"
"""How commands stand that train several runs."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which unwinds the program as Ctrl-C does."""


@contextmanager
def telling(listener: Listener, say: Callable[[], str]) -> Iterator[None]:
    """Say how things stand where the user or the system ends the command.

    Args:
        listener: whom to tell.
        say: returns what is saved and how to go on.
    """
    before: Any = None
    main = threading.current_thread() is threading.main_thread()  # only there may handlers be set
    if main:
        before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt:
        listener.message(say())
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def command_line(command: str, recipe: str, overrides: Sequence[str]) -> str:
    """Return a command as a shell takes it."""
    sets = [part for override in overrides for part in ("--set", override)]
    return shlex.join(["ftengine", command, recipe, *sets])


def state_of(output: str, again: str, resume: str) -> str:
    """Say what a run has saved, and the command that goes on.

    Args:
        output: the run's folder.
        again: the command that was given.
        resume: the one that continues a run.
    """
    from ftengine.run.directory import RunDirectory
    from ftengine.training.checkpoint import checkpoint_folders

    run = RunDirectory(output)
    if not run.is_run():
        return f"nothing is saved yet; begin again with: {again}"
    if run.finished:
        return f"{output} holds the finished model and its figures; make the report with: {resume}"
    folders = checkpoint_folders(run)
    if not folders:
        return f"no checkpoint is saved yet, only what the base was measured at; begin training again with: {resume}"
    step = int(Path(folders[-1]).name.removeprefix("step-"))
    return f"saved: the checkpoint of step {step:,} in {folders[-1]}; go on from there with: {resume}"
