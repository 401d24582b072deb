"""Listeners: they receive what happens during a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol


class Listener(Protocol):
    """Receives what happens during a run; the CLI prints it, a notebook may plot it."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins ("load", "encode", "train", …); `total` is its number of steps where known."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Some steps of the phase are done; `figures` are the latest numbers (loss, learning_rate, …)."""

    def message(self, text: str) -> None:
        """A message of one line."""


class SilentListener:
    """The listener that does nothing."""

    def phase(self, name: str, total: int | None = None) -> None: ...
    def advance(self, steps: int = 1, **figures: float) -> None: ...
    def message(self, text: str) -> None: ...


def iterate(listener: Listener, items: Iterable[Any], phase: str, total: int | None = None) -> Iterator[Any]:
    """Yield `items` and advance the listener after each."""
    listener.phase(phase, total)
    for item in items:
        yield item
        listener.advance()
