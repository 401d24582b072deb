"""Ctrl-C and SIGTERM while a model trains: the step ends, a checkpoint is saved, and then the signal has its effect."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether training is asked to stop, in this process and in any.

    Args:
        alone: whether this is the only process. The same signal again then has its effect at once; of several
            processes, which a launcher may signal twice, none leaves the others alone in the middle of a step.
    """

    def __init__(self, alone: bool) -> None:
        self.agreed = False
        """Whether all processes know, after the same step, that one of them is asked to stop."""
        self._alone, self._asked = alone, 0
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether this process is asked to stop."""
        return bool(self._asked)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals instead of following them before the end; those that are ignored stay so."""
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._ask)
        try:
            yield
        finally:
            self._restore()
        if self._asked:  # after the last step
            self.follow()

    def follow(self) -> None:
        """Let the signal have the effect that it would have had, in the processes that did not get it too."""
        self._restore()
        number, self._asked = self._asked or signal.SIGTERM, 0
        signal.raise_signal(number)

    def _ask(self, number: int, frame: Any) -> None:
        first, again = not self._asked, number == self._asked
        self._asked = self._asked or number
        if again and self._alone:
            self.follow()
        elif first and self._alone:
            # Not by a listener, which may be in the middle of a line; nobody may read it any more.
            with suppress(OSError):
                os.write(2, b"\nending this step, then saving a checkpoint; the same signal again stops at once\n")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
