"""Damage to files: bytes changed, cut off, taken out, doubled or put in, as hypothesis draws it."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from ftengine.errors import FtengineError

SECONDS = float(os.environ.get("FTENGINE_FUZZ_SECONDS", 0))
"""How long each family is fuzzed; 0: the same few cases each time, as in `make test`."""
SLOW = 10.0
"""Seconds of processor time after which reading a file of a few kB hangs."""
LONGEST = 3000
"""Characters of an error's message, at most."""
EXTREMES = [struct.pack("<q", n) for n in (-1, 2**31, 2**40, 2**63 - 1, -(2**63))] + [b"\xff" * 4, b"\0" * 8]


@st.composite
def damaged(draw: st.DrawFn, files: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """Draw one of some files with one to three damages; `tokens` are what its format gives a meaning."""
    content = draw(st.sampled_from(files))
    for _ in range(draw(st.integers(1, 3))):
        # Half of them near the beginning, where formats have their headers.
        at = draw(st.one_of(st.integers(0, min(300, len(content))), st.integers(0, len(content))))
        length = draw(st.integers(1, 40))
        match draw(st.sampled_from(("change", "cut", "take", "double", "token", "token", "replace", "replace"))):
            case "change":
                content = content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
            case "cut":
                content = content[:at]
            case "take":
                content = content[:at] + content[at + length :]
            case "double":
                content = content[: at + length] + content[at : at + length] * draw(st.integers(1, 3)) + content[at:]
            case "token":
                content = content[:at] + draw(st.sampled_from(tokens)) + content[at:]
            case "replace":
                token = draw(st.sampled_from(tokens))
                content = content[:at] + token + content[at + len(token) :]
    return content


def survive(act: Callable[[], object]) -> None:
    """Hold that an action succeeds or raises an error of ftengine with a bearable message, within bounded time."""
    begun, said = time.process_time(), "success"
    try:
        act()
    except FtengineError as error:
        said = str(error)
    assert 0 < len(said) < LONGEST
    assert time.process_time() - begun < SLOW


def fuzz(cases: st.SearchStrategy, check: Callable[..., None], examples: int) -> int:
    """Check so many cases, or as many as there is time for; return their number."""
    checked, ended = 0, time.monotonic() + SECONDS
    while not checked or time.monotonic() < ended:

        @seed(checked)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(cases)
        def run(case: object) -> None:
            nonlocal checked
            checked += 1
            check(case)

        run()
    return checked
