"""Keep advice, warnings and progress bars of other libraries out of the output; `--debug` shows them."""

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
"""Environment variables that these libraries read when they are imported. Variables that the user set stay."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence other libraries' output, but not their errors."""
    added = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    os.environ.update(added)
    # The handler of loggers without configuration; it prints warnings to stderr.
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
