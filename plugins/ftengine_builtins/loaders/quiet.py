"""Loading without chatter: transformers reports by table and progress bar what ftengine reports itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ftengine.errors import FtengineError, SourceError
from transformers.utils import logging


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
def reading(source: str, advice: str = "") -> Iterator[None]:
    """Turn whatever a library raises over a damaged or unknown model into a SourceError that names the source."""
    try:
        with quiet():
            yield
    except (FtengineError, MemoryError):
        raise
    # Libraries answer damaged files with errors of every class; each means that this source cannot be read.
    except Exception as error:
        raise SourceError(f"cannot load {source!r}: {cause(error)}{advice}") from error


def cause(error: BaseException) -> str:
    """Say an error's class and message in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}".rstrip(".: ") + "."
