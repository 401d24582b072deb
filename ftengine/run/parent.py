"""A process that trains for another one ends with it, also where that one is killed."""

from __future__ import annotations

import os
import signal
import threading

PARENT = "_FTENGINE_PARENT"
"""Set for such a process; its standard input is a pipe that nothing is written to, and that ends with the other one."""


def end_with_parent() -> None:
    """Where this process trains for another one, let it end as by SIGTERM once that one is gone."""
    if os.environ.pop(PARENT, None):
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
