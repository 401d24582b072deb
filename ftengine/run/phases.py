"""Durations of the phases of a run."""

from __future__ import annotations

import time

from ftengine.api import Listener


class TimedPhases:
    """A listener that forwards all events to another one, and measures the seconds of each phase.

    Args:
        listener: receives the events.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._seconds: dict[str, float] = {}
        self._name, self._began = "", time.monotonic()

    def phase(self, name: str, total: int | None = None) -> None:
        self._settle()
        self._name = name
        self._listener.phase(name, total)

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._listener.advance(steps, **figures)

    def message(self, text: str) -> None:
        self._listener.message(text)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase so far, in the order in which they began."""
        self._settle()
        return {name: round(seconds, 3) for name, seconds in self._seconds.items()}

    def _settle(self) -> None:
        now = time.monotonic()
        if self._name:
            self._seconds[self._name] = self._seconds.get(self._name, 0.0) + now - self._began
        self._began = now
