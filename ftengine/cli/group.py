"""The command group: commands are imported when called, and every failure ends as one `error:` line."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from pkgutil import resolve_name
from typing import Any

import click

from ftengine.cli.external import OWN, conflict, external_commands, help_line, load_command
from ftengine.cli.failure import Terminated, fail, terminable
from ftengine.cli.options import add_debug
from ftengine.cli.quiet import quiet
from ftengine.errors import PluginError, did_you_mean, is_panic
from ftengine.plugins.distributions import Offer

COMPLETING = "_FTENGINE_COMPLETE"
"""The variable by which a shell's script asks for completions."""

FULL_COLLECTIONS = 1000
"""The garbage collector's last threshold: full collections visit all that torch and transformers made when they were
imported, which takes a second in sum while they are, and find nothing."""


def end_quickly() -> None:
    """Leave out the collections at the end of Python, which take more than a second; what files hold back is written.

    To be called last.
    """
    (file,) = io.IOBase.__bases__  # written in C: an abstract class is slow to ask half a million times
    for one in gc.get_objects():
        if issubclass(type(one), file) and not one.closed:
            with suppress(OSError, ValueError):
                one.flush()
    gc.freeze()
    if "triton" in sys.modules:  # whose nanobind takes what is frozen for leaked, and writes a page of that
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)


class Suggesting(click.Group):
    """A group that names the nearest command when one is unknown."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        # What begins with a dash is a misspelt option; click says so itself.
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            ctx.fail(f"no command {name!r}. There are {', '.join(known)}.{did_you_mean(name, known)}")
        return super().resolve_command(ctx, args)


class Commands(Suggesting):
    """ftengine's own commands, and those of installed plugins."""

    def __init__(self, *args: Any, builtin: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        """Take the table of commands: by name, the place of each (`module:object`) and its line of help."""
        super().__init__(*args, **kwargs)
        add_debug(self)
        self.builtin = builtin
        self._external: dict[str, list[Offer]] | None = None

    @property
    def external(self) -> dict[str, list[Offer]]:
        """Commands of plugins, found once; finding them reads metadata and imports nothing."""
        if self._external is None:
            self._external = external_commands()
        return self._external

    @property
    def taken(self) -> list[str]:
        """Say of each name that more than one distribution has a command of whose they are, a sentence each."""
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
            if ctx.resilient_parsing:  # shell completion has nowhere to report to
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
        """Run a command; what it returns means nothing, so that `main` sees exit codes alone."""
        try:
            super().invoke(ctx)
        except SystemExit as error:
            if ctx.invoked_subcommand not in self.builtin:
                raise
            from ftengine.plugins.attribution import blame

            # Commands of ftengine's own end by an exit status alone; what else ends them has not done what was asked.
            said = blame(error)
            if isinstance(error.code, int) and error.code and not said:
                raise
            raise PluginError(said or f"it was ended by code that it called (SystemExit: {error.code})") from error

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
        if COMPLETING in os.environ:
            import_module("ftengine.cli.shells")  # tells click how bash completes KEY=VALUE
        debug = "--debug" in (sys.argv[1:] if args is None else args)
        if hasattr(sys.stdout, "reconfigure"):  # what the terminal's encoding lacks is printed as an escape
            sys.stdout.reconfigure(errors="backslashreplace")
        gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTIONS)
        atexit.unregister(end_quickly)
        atexit.register(end_quickly)
        with nullcontext() if debug else quiet(), terminable():
            try:
                sys.exit(super().main(args, prog_name, complete_var, False, **extra) or 0)
            # The outermost frame of the program: whatever arrives here becomes one line and an exit status.
            except BaseException as error:
                if not (isinstance(error, (Exception, Terminated)) or is_panic(error)):
                    raise
                fail(error, debug)
