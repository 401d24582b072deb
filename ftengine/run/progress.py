"""Progress on stderr: bars on a terminal, a few lines in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from ftengine.text import duration, number, one_line, printable, size

if TYPE_CHECKING:
    from rich.console import Console

    from ftengine.api import Listener

DELAY = 2.0
"""A phase gets a bar after this many seconds."""
LOG_DELAY = 10.0
"""Minimum of seconds between two lines of a phase in a log."""


def is_main_process() -> bool:
    """Return whether this process prints; torchrun and accelerate set RANK."""
    return os.environ.get("RANK", "0") == "0"


def announce(doing: str) -> None:
    """Print on a terminal what a command does, before the first imports, which take seconds."""
    if is_main_process() and sys.stderr.isatty():
        click.echo(printable(f"{doing} …"), err=True)


@contextmanager
def listening(*, bars: bool = True) -> Iterator[Listener]:
    """Yield a listener for stderr; pass `bars=False` if results stream to stdout, which may be the same terminal."""
    from ftengine.api import SilentListener

    if not is_main_process():
        yield SilentListener()
    elif bars and sys.stderr.isatty():
        with terminal_listener() as listener:
            yield listener
    else:
        yield LineListener()


class Pace:
    """Progress and speed of a phase; `total` is its number of steps, or None."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total, self.done = name, total, 0
        self.started = time.monotonic()
        self.figures: dict[str, float] = {}
        self._first: tuple[float, int] | None = None
        self._examples = self._tokens = self._memory = 0.0

    def advance(self, steps: int, figures: dict[str, float]) -> None:
        self.done += steps
        self._examples += figures.pop("examples", 0.0)
        self._tokens += figures.pop("tokens", 0.0)
        self._memory = figures.pop("memory", self._memory)
        self.figures = figures
        if self._first is None:  # a resumed phase begins with a jump, which must not count as speed
            self._first = (time.monotonic(), self.done)

    def describe(self) -> str:
        """Return steps done, the remaining time, the latest figures and the speed."""
        parts = [f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"]
        since, before = self._first or (self.started, 0)
        seconds, steps = time.monotonic() - since, self.done - before
        moving = seconds > 0 and steps > 0
        if moving and self.total is not None and self.done < self.total:
            parts.append(f"{duration(seconds / steps * (self.total - self.done))} left")
        parts += [f"{name.replace('_', ' ')} {number(value)}" for name, value in self.figures.items()]
        if moving:
            rates = {" examples/s": self._examples, " tokens/s": self._tokens}
            shown = {unit: rate for unit, rate in rates.items() if rate} or {"/s": steps}
            parts += [f"{number(rate / seconds)}{unit}" for unit, rate in shown.items()]
        if self._memory:
            parts.append(f"{size(int(self._memory))} at the peak")
        return ", ".join(parts)


class LineListener:
    """For logs: prints one line a phase, and one for each tenth of a long phase."""

    _pace: Pace | None = None

    def phase(self, name: str, total: int | None = None) -> None:
        self._pace = Pace(name, total)
        self._shown, self._tenth = time.monotonic(), 0
        self.message(name if total is None else f"{name}: {total:,}")

    def advance(self, steps: int = 1, **figures: float) -> None:
        pace = self._pace
        if pace is None:
            return
        pace.advance(steps, figures)
        tenth = 10 * pace.done // pace.total if pace.total else 0
        if tenth > self._tenth and steps and time.monotonic() - self._shown >= LOG_DELAY:
            self._shown, self._tenth = time.monotonic(), tenth
            self.message(f"{pace.name} {pace.describe()}")

    def message(self, text: str) -> None:
        click.echo(one_line(text), err=True)


class TerminalListener:
    """For terminals: shows one bar of a `rich.progress.Progress` for the current phase."""

    _pace: Pace | None = None
    _task: Any = None

    def __init__(self, bars: Any) -> None:
        self._bars = bars

    def phase(self, name: str, total: int | None = None) -> None:
        self.close()
        self._pace = Pace(one_line(name), total)
        self._task = self._bars.add_task(self._pace.name, total=total, state="")

    def advance(self, steps: int = 1, **figures: float) -> None:
        pace = self._pace
        if pace is None:
            return
        pace.advance(steps, figures)
        self._bars.update(self._task, completed=pace.done, state=pace.describe())

    def message(self, text: str) -> None:
        from rich.text import Text

        self._bars.console.print(Text(one_line(text)))

    def close(self) -> None:
        """Remove the phase's bar; a long phase leaves a line."""
        if self._pace is None:
            return
        self._bars.remove_task(self._task)
        seconds = time.monotonic() - self._pace.started
        if seconds >= DELAY:
            self.message(f"{self._pace.name}: {duration(seconds)}")
        self._pace = None


@contextmanager
def terminal_listener(console: Console | None = None) -> Iterator[TerminalListener]:
    """Yield a listener that shows a bar for each phase longer than DELAY."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    class Bars(Progress):
        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table([task for task in self.tasks if (task.elapsed or 0) >= DELAY])

    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}", markup=False),
        console=console or Console(stderr=True, markup=False, highlight=False, emoji=False),
        transient=True,
        refresh_per_second=4,
        redirect_stdout=False,
    )
    with bars, closing(TerminalListener(bars)) as listener:
        yield listener
