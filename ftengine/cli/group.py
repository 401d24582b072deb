"""The command group: commands are imported when called, and every failure ends as one `error:` line."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pkgutil import resolve_name
from typing import Any

import click
from click import shell_completion as shells

from ftengine.cli.external import OWN, conflict, external_commands, help_line, load_command
from ftengine.cli.failure import Terminated, fail, terminable
from ftengine.cli.options import add_debug
from ftengine.errors import PluginError, did_you_mean, is_panic
from ftengine.plugins.distributions import Offer

COMPLETING = "_FTENGINE_COMPLETE"
"""The environment variable that a shell's completion script sets."""

FULL_COLLECTIONS = 1000
"""The garbage collector's last threshold. Full collections during the import of torch and transformers visit all their
objects, take a second in sum and free nothing."""


def end_quickly() -> None:
    """Skip the garbage collections at the end of Python, which take more than a second; flush open files first.

    Call it last.
    """
    (file,) = io.IOBase.__bases__  # the C class: isinstance of the abstract class is slow for half a million objects
    for item in gc.get_objects():
        if issubclass(type(item), file) and not item.closed:
            with suppress(OSError, ValueError):
                item.flush()
    gc.freeze()
    if "triton" in sys.modules:  # its nanobind reports frozen objects as leaks, a page of them
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)


class Suggesting(click.Group):
    """A group that suggests the nearest command for an unknown one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        # A name with a dash is a misspelt option; click reports it.
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            commands = self.list_commands(ctx)
            ctx.fail(f"no command {name!r}. Commands: {', '.join(commands)}.{did_you_mean(name, commands)}")
        return super().resolve_command(ctx, args)


class Commands(Suggesting):
    """ftengine's own commands, and those of installed plugins."""

    def __init__(self, *args: Any, builtin: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        """Create the group; `builtin` maps a name to (`module:object`, line of help)."""
        super().__init__(*args, **kwargs)
        add_debug(self)
        self.builtin = builtin
        self._external: dict[str, list[Offer]] | None = None

    @property
    def external(self) -> dict[str, list[Offer]]:
        """Commands of plugins, looked up once in the metadata of distributions; nothing is imported."""
        if self._external is None:
            self._external = external_commands()
        return self._external

    @property
    def taken(self) -> list[str]:
        """A message for each name that several distributions offer as a command."""
        offered = sorted(self.external.items())
        return [conflict(x, of, builtin=x in self.builtin) for x, of in offered if len(of) > (x not in self.builtin)]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.builtin, *sorted(self.external.keys() - self.builtin.keys())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Load a command (PluginError: it is broken, or more than one distribution offers it)."""
        offers, command = self.external.get(name, []), None
        try:
            if name in self.builtin:
                if offers:
                    raise PluginError(conflict(name, offers, builtin=True))
                command = resolve_name(self.builtin[name][0])
            elif offers:
                command = load_command(name, offers)
        except PluginError:
            if ctx.resilient_parsing:  # shell completion cannot show an error
                return None
            raise
        if command is not None:
            add_debug(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = [(name, line) for name, (_, line) in self.builtin.items()]
        of_plugins = []
        for name, offers in sorted(self.external.items()):
            if all(offer.distribution == OWN for offer in offers):
                lines.append((name, help_line(offers[0])))
            else:
                of_plugins.append((name, f"{help_line(offers[0])} ({', '.join(map(str, offers))})".lstrip()))
        with formatter.section("Commands"):
            formatter.write_dl(lines)
        if of_plugins:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(of_plugins)

    def invoke(self, ctx: click.Context) -> None:
        """Run a command and drop what it returns, so that `main` receives only exit codes."""
        try:
            super().invoke(ctx)
        except SystemExit as error:
            if ctx.invoked_subcommand not in self.builtin:
                raise
            from ftengine.plugins.attribution import blame

            # ftengine's own commands exit with a number; another exit, or one in code of a plugin, is a failure.
            cause = blame(error)
            if isinstance(error.code, int) and error.code and not cause:
                raise
            raise PluginError(
                cause or f"code that the command called ended the program (SystemExit: {error.code})"
            ) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run as a program: print one line for every error and exit with its status."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        debug = "--debug" in (sys.argv[1:] if args is None else args)
        if hasattr(sys.stdout, "reconfigure"):  # characters outside the terminal's encoding become escapes
            sys.stdout.reconfigure(errors="backslashreplace")
        gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTIONS)
        atexit.unregister(end_quickly)
        atexit.register(end_quickly)
        with nullcontext() if debug else quiet(), terminable():
            try:
                sys.exit(super().main(args, prog_name, complete_var, False, **extra) or 0)
            # The outermost frame of the program: every error becomes one line and an exit status.
            except BaseException as error:
                if not (isinstance(error, (Exception, Terminated)) or is_panic(error)):
                    raise
                fail(error, debug)


SETTINGS = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment variables that these libraries read when they are imported. Variables that the user set stay."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence advice, warnings and progress bars of other libraries, but not their errors; `--debug` shows them."""
    added = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    os.environ.update(added)
    # The handler of loggers without configuration; it prints warnings to stderr.
    last = logging.lastResort
    level = last.level if last else logging.WARNING
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            if last:
                last.setLevel(logging.ERROR)
            yield
    finally:
        if last:
            last.setLevel(level)
        for name in added:
            os.environ.pop(name, None)


@shells.add_completion_class
class _Bash(shells.BashComplete):
    """Bash splits KEY=VALUE at the =, and inserts a completion after it."""

    _key = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        value = "" if incomplete == "=" else incomplete
        if incomplete == "=" and args:
            args = [*args, "="]
        if len(args) > 1 and args[-1] == "=":
            *args, key, _ = args
            self._key = f"{key}="
            return args, self._key + value
        return args, incomplete

    def format_completion(self, item: shells.CompletionItem) -> str:
        if item.type != "plain":
            return super().format_completion(item)
        return f"plain,{item.value.removeprefix(self._key)}"
