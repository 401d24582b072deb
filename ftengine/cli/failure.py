"""Failed and interrupted commands: one `error:` line, the exit status, and what is saved after Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ftengine.errors import FtengineError, InputError, ProcessLost, system_limit
from ftengine.run.progress import is_main_process
from ftengine.text import one_line

if TYPE_CHECKING:
    from ftengine.api import Listener

SAVED = "finished runs and the last checkpoint of the interrupted one are saved; run the same command again to continue"
"""The message of an interrupted command that trains several runs."""


class Terminated(BaseException):
    """SIGTERM arrived. It unwinds the program as Ctrl-C does, and also ends a chat, which Ctrl-C does not."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`, so that nothing is left half-written; an ignored SIGTERM stays ignored."""
    before = signal.getsignal(signal.SIGTERM)
    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def report_errors(listener: Listener, say: Callable[[], str]) -> Iterator[None]:
    """If the user or the system ends the command, show the text of `say`: what is saved and how to continue."""
    try:
        yield
    except (KeyboardInterrupt, Terminated, ProcessLost):
        listener.message(say())
        raise


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def state_of(output: str, again: str) -> str:
    """Return what a run has saved and the command that continues it; `again` is the command that was given."""
    from ftengine.run.directory import RunDirectory
    from ftengine.training.checkpoint import checkpoint_folders

    run, resume = RunDirectory(output), f"{again} --resume"
    if not run.is_run():
        return f"nothing is saved yet; begin again with: {again}"
    if run.finished:
        return f"{output} holds the finished model and its figures; make the report with: {resume}"
    folders = checkpoint_folders(run)
    if not folders:
        return f"no checkpoint is saved yet, only the base model's predictions; start training again with: {resume}"
    step = int(Path(folders[-1]).name.removeprefix("step-"))
    return f"saved: the checkpoint of step {step:,} in {folders[-1]}; go on from there with: {resume}"


def fail(error: BaseException, debug: bool) -> NoReturn:
    """Print an error to stderr in one line, after its traceback with `debug`, and exit with its status.

    With several processes, process 0 prints its error, and the others print theirs only if it is different.
    """
    if debug:
        traceback.print_exception(error)
    # click 8.2 and later raise it for a group without a command; its message is the help.
    if isinstance(error, click.UsageError) and type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        _print_error(error, one_line(describe(error)))
    sys.exit(exit_code(error))


def _print_error(error: BaseException, message: str) -> None:
    # Each remaining process reports lost ones: it may be the only one left.
    reports_itself = os.environ.get("WORLD_SIZE", "1") == "1" or isinstance(error, ProcessLost)
    if reports_itself or is_main_process():
        click.echo(f"error: {message}", err=True)
    if reports_itself:
        return
    from ftengine.parallel.rendezvous import reported_by_rank0

    if not (reported_by_rank0(message) or is_main_process()):
        click.echo(f"error: process {os.environ['RANK']} (host {socket.gethostname()}): {message}", err=True)


ENDS: dict[type, tuple[str, int]] = {
    Terminated: ("terminated.", 128 + signal.SIGTERM),
    KeyboardInterrupt: ("interrupted.", 128 + signal.SIGINT),
    click.Abort: ("aborted.", 1),
}
"""Exceptions that end a command from outside, with the message and the exit status that shells expect."""


def _end(error: BaseException) -> tuple[str, int] | None:
    """Return message and exit status of an error in ENDS; None for another error."""
    cause = error.__cause__ if isinstance(error, click.Abort) else None  # click's name for Ctrl-C
    return ENDS.get(type(cause)) or ENDS.get(type(error))


def describe(error: BaseException) -> str:
    """Return what happened and, if possible, what to do."""
    if isinstance(error, click.UsageError):
        message = error.format_message()
        end = "" if message.endswith((".", "?", "?)")) else "."
        return f"{message}{end} See `{error.ctx.command_path} --help`." if error.ctx else message
    if isinstance(error, click.ClickException):
        return error.format_message()
    if (ended := _end(error)) is not None:
        return ended[0]
    if isinstance(error, FtengineError):
        return str(error)
    if limit := system_limit(error):  # of temporary files; those of a run have their own messages
        place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        return f"{limit[0]}{place}. {limit[1]}, or set TMPDIR to another folder. Complete files are kept."
    if _out_of_memory(error):
        reason = str(error).strip().split("\n")[0].rstrip(".")
        return (
            f"out of memory{reason and f' ({reason})'}. Lower train.batch_size and raise train.accumulate by as much, "
            "bound micro-batches with train.batch_tokens, shorten the task's max_length, or set "
            "train.gradient_checkpointing: true. Complete files are kept."
        )
    from ftengine.plugins.attribution import blame

    if cause := blame(error):
        return cause
    if isinstance(error, ModuleNotFoundError) and error.name:
        name = error.name.partition(".")[0]
        return f"the Python module {name!r} is needed and not installed (run with --debug to see what needs it)."
    return f"unexpected {type(error).__name__}: {error} (run with --debug for the traceback)"


def _out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, in Python, in torch on a CPU, or on a GPU."""
    refused = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or refused


def exit_code(error: BaseException) -> int:
    """Return the exit status: 2 for wrong input and limits of the system, 130 for Ctrl-C, 143 for SIGTERM, else 1."""
    if isinstance(error, (FtengineError, click.ClickException)):
        return error.exit_code
    if system_limit(error):
        return InputError.exit_code
    end = _end(error)
    return end[1] if end else 1
