"""A training process that another process started ends with it, even if that is killed."""

from __future__ import annotations

import os
import signal
import threading

PARENT = "_FTENGINE_PARENT"
"""Environment variable of such a process. Its standard input is a pipe that closes when the parent ends."""


def end_with_parent() -> None:
    """If another process started this one to train, send SIGTERM to this process when that ends."""
    if os.environ.pop(PARENT, None):
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
