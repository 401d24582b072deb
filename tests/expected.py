"""What tests expect: of an error its class and the facts that its message carries, of a command all that it prints."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
VARYING = [
    (r"\n {6,}(?=\S)", " "),  # a line that goes on: where it breaks depends on its figures
    (r"(?<![:/\w])(?:/[\w.+-]+)+/", "…/"),
    (r"(\n *(?:base|tuned)  )(?! *-?\d).*", r"\1…"),
    (r"“[^”]*”", "“…”"),  # what the model answers
    (r"(\nkernels  ).*|(\nwarning  the machine is busy).*", r"\1"),
    (r"\d+ min(?: \d+ s)?|[\d.]+ m?s\b", "0 s"),
    (r"[\d.,]+ [KMG]iB", "0 MiB"),
    (r"[\d.,]+ (examples|tokens)/s", r"0 \1/s"),
    (r"\d[\d,]*\.\d+(?:e-?\d+)?", "0.0"),
    (r"(\nperplexity +)\S+( +)\S+( +)\S+", r"\g<1>0.0\g<2>0.0\g<3>−0.0"),  # so large that they may have no decimals
    (r"p < 0\.0\b", "p = 0.0"),
    (r"(ftengine[\w-]*) [\d.]+", r"\1 VERSION"),
    (r" {2,}|-{3,}", "  "),
    (r" +\n", "\n"),
]
"""What differs between machines, and what takes its place: paths, times, sizes, figures, versions, columns."""


@contextmanager
def raises(kind: type[BaseException] | tuple[type[BaseException], ...], *facts: str) -> Iterator[pytest.ExceptionInfo]:
    """Expect an error that names each of these: a file with its line, a key, a value. Its other words are free."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert not [fact for fact in facts if fact not in message], message


def golden(name: str, text: str) -> None:
    """Compare what a command prints with tests/golden/NAME.txt; `make golden` writes that file anew."""
    for pattern, instead in VARYING:
        text = re.sub(pattern, instead, text)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("FTENGINE_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "`make golden` writes what is printed now: look at its difference"
