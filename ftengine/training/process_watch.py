"""Detects whether called code changes the working directory or leaves threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11

LASTING = ("TMonitor", "_DummyThread")
"""Classes of threads that libraries keep for the life of the process: tqdm's, and those not started by Python."""

SECONDS = 1.0
"""Seconds that a thread gets to end."""


class ProcessWatch:
    """Restores the working directory afterwards, and records what it was changed to and the threads that were started
    meanwhile by any code."""

    def __enter__(self) -> Self:
        self._directory, self._threads = _directory(), set(threading.enumerate())
        self.moved_to = ""
        return self

    def __exit__(self, *_: object) -> None:
        if (now := _directory()) != self._directory:
            self.moved_to = now
            with suppress(OSError):  # the folder was removed
                os.chdir(self._directory)

    def started(self) -> list[threading.Thread]:
        """Return the threads that were started since and are still running."""
        threads = (thread for thread in threading.enumerate() if thread not in self._threads)
        return [thread for thread in threads if type(thread).__name__ not in LASTING]


def running(threads: Iterable[threading.Thread]) -> str:
    """Return the name of a thread that is running and does not end soon; "" if there is none."""
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(SECONDS)
        if thread.is_alive():
            return thread.name
    return ""


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # the folder was removed
        return ""
