"""Other libraries' advice, warnings and progress bars kept out of the output; `--debug` lets them speak."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""What these libraries read when they are imported. The user's own settings stand."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what is no result and no error."""
    added = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    os.environ.update(added)
    # The handler of loggers that nobody configured; it prints warnings to stderr.
    last = logging.lastResort
    level = last.level if last else logging.WARNING
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            if last:
                last.setLevel(logging.ERROR)
            yield
    finally:
        if last:
            last.setLevel(level)
        for name in added:
            os.environ.pop(name, None)
