"""Ctrl-C, SIGTERM or a file while a model trains: finish the step, save a checkpoint, and only then end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Requests to stop training by a signal or a file.

    Args:
        single_process: whether this is the only process. A second signal then takes effect at once. With several
            processes, which a launcher may signal twice, it does not, as the others would hang in the middle of a step.
    """

    def __init__(self, single_process: bool) -> None:
        self.agreed = False
        """Whether all processes agreed, after the same step, to stop because one was asked to."""
        self.file: Path | None = None
        """Asks this process to stop, as Ctrl-C does, by being there; it is removed then. None: no file does."""
        self._single_process, self._signal = single_process, 0
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        if not self._signal and self._take_file():
            self._signal = signal.SIGINT
        return bool(self._signal)

    def _take_file(self) -> bool:
        """Return whether the file was there; it is there no more, so that a resumed run goes on."""
        if self.file is None:
            return False
        try:
            self.file.unlink()
        except OSError:
            return False
        return True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals instead of acting on them at once; ignored signals stay ignored."""
        if threading.current_thread() is threading.main_thread():  # handlers can only be set there
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._ask)
        try:
            yield
        finally:
            self._restore()
        if self._signal:  # after the last step
            self.follow()

    def follow(self) -> None:
        """Act on the signal, also in processes that did not get it."""
        self._restore()
        number, self._signal = self._signal or signal.SIGTERM, 0
        signal.raise_signal(number)

    def _ask(self, number: int, frame: Any) -> None:
        first, again = not self._signal, number == self._signal
        self._signal = self._signal or number
        if again and self._single_process:
            self.follow()
        elif first and self._single_process:
            # Not through a listener, which may be in the middle of a line; stderr may be closed.
            with suppress(OSError):
                os.write(2, b"\nending this step, then saving a checkpoint; the same signal again stops at once\n")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
