"""Loading without chatter: transformers reports by table and progress bar what ftengine reports itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from ftengine.errors import FtengineError, SourceError

LONGEST_CAUSE = 240
"""Characters of a library's message that an error line repeats."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and advice, and put everything back afterwards."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def reading(source: str, failure: type[FtengineError] = SourceError) -> Iterator[None]:
    """Turn whatever a library raises over a damaged or unknown model into an error that names the source."""
    try:
        with quiet():
            yield
    except (FtengineError, MemoryError):
        raise
    # Libraries answer damaged files with errors of every class; each means that this source cannot be read.
    except Exception as error:
        raise failure(f"cannot load {source!r}: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """Say an error's class and message in one line of bearable length."""
    text = " ".join(str(error).split()).rstrip(".: ")
    text = text if len(text) <= LONGEST_CAUSE else text[:LONGEST_CAUSE] + "…"
    return f"{type(error).__name__}: {text}." if text else f"{type(error).__name__}."
