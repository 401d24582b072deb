"""Loading without the tables and progress bars of transformers; errors of libraries become ftengine's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ftengine.errors import FtengineError, SourceError, is_panic
from ftengine.model import quiet_transformers

LONGEST_CAUSE = 240
"""Characters of a library's message that an error line repeats."""


@contextmanager
def reading(source: str, failure: type[FtengineError] = SourceError) -> Iterator[None]:
    """Turn any error of a library about a damaged or unknown model into one that names the source."""
    try:
        with quiet_transformers():
            yield
    except (FtengineError, MemoryError):
        raise
    # Libraries raise errors of every class for damaged files; each means that this source cannot be read.
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise failure(f"cannot load {source!r}: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """Return an error's class and message on one line of limited length."""
    text = " ".join(str(error).split()).rstrip(".: ")
    text = text if len(text) <= LONGEST_CAUSE else text[:LONGEST_CAUSE] + "…"
    return f"{type(error).__name__}: {text}." if text else f"{type(error).__name__}."
