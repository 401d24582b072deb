"""Whether somebody who is called changes what the whole process has: its working directory and its threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11

LASTING = ("TMonitor", "_DummyThread")
"""Classes of threads that libraries keep as long as the process: tqdm's, and those that are none of Python's."""

SECONDS = 1.0
"""What a thread that was asked to end is given."""


class ProcessWatch:
    """Puts the working directory back afterwards, and says what it was changed to and which threads were
    started meanwhile, by whomever."""

    def __enter__(self) -> Self:
        self._directory, self._threads = _directory(), set(threading.enumerate())
        self.moved_to = ""
        return self

    def __exit__(self, *_: object) -> None:
        if (now := _directory()) != self._directory:
            self.moved_to = now
            with suppress(OSError):  # it was removed
                os.chdir(self._directory)

    def started(self) -> list[threading.Thread]:
        """Return the threads that were started since and still run."""
        threads = (thread for thread in threading.enumerate() if thread not in self._threads)
        return [thread for thread in threads if type(thread).__name__ not in LASTING]


def running(threads: Iterable[threading.Thread]) -> str:
    """Return the name of a thread that runs and does not end by itself; "" where there is none."""
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(SECONDS)
        if thread.is_alive():
            return thread.name
    return ""


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is no more
        return ""
