"""From an exception to one `error:` line and an exit status."""

from __future__ import annotations

import traceback

import click

from ftengine.cli.interrupted import Terminated
from ftengine.errors import FtengineError
from ftengine.report.text import one_line

INTERRUPTED = 130
TERMINATED = 143
"""What shells report of a program ended by Ctrl-C and by SIGTERM: 128 + the signal's number."""


def report(error: Exception, debug: bool) -> None:
    """Print an error to stderr in one line, after its traceback where that is wanted."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, _help_for_nothing()):
        error.show()
    else:
        click.echo(f"error: {one_line(describe(error))}", err=True)


def describe(error: Exception) -> str:
    """Say what happened and, where there is something, what to do."""
    if isinstance(error, click.UsageError):
        message = error.format_message()
        end = "" if message.endswith((".", "?", "?)")) else "."
        return f"{message}{end} See `{error.ctx.command_path} --help`." if error.ctx else message
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, click.Abort):
        if isinstance(error.__cause__, Terminated):
            return "terminated."
        return "interrupted." if _is_interrupt(error) else "aborted."
    if isinstance(error, FtengineError):
        return str(error)
    from ftengine.plugins.blame import blame

    return blame(error) or f"unexpected {type(error).__name__}: {error} (run with --debug for the traceback)"


def exit_code(error: Exception) -> int:
    """Return the exit status: 2 for wrong input, 130 for Ctrl-C, 143 for SIGTERM, 1 for anything else."""
    if isinstance(error, (FtengineError, click.ClickException)):
        return error.exit_code
    if isinstance(error, click.Abort) and isinstance(error.__cause__, Terminated):
        return TERMINATED
    return INTERRUPTED if _is_interrupt(error) else 1


def _is_interrupt(error: Exception) -> bool:
    return isinstance(error, click.Abort) and isinstance(error.__cause__, KeyboardInterrupt)


def _help_for_nothing() -> tuple[type[click.UsageError], ...]:
    """Return click's error for a group called without a command, whose message is the help; new in click 8.2."""
    kind = getattr(click.exceptions, "NoArgsIsHelpError", None)
    return (kind,) if kind else ()
