"""What tests expect of an error: its class, and the facts that its message has to carry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def raises(kind: type[BaseException] | tuple[type[BaseException], ...], *facts: str) -> Iterator[pytest.ExceptionInfo]:
    """Expect an error that names each of these: a file with its line, a key, a value. Its other words are free."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert not [fact for fact in facts if fact not in message], message
