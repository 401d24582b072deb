"""Reward unit-tests: an answer's code, run against tests in a process of its own with limits.

The file is opened by itself in the scoring process, so it imports nothing of ftengine; it is also the program of the
process that runs the code. That is no sandbox: the code has the user's rights, but no environment, no files to write,
and limits of time and memory.
"""

from __future__ import annotations

import json
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

MEMORY = 1 << 30
"""Bytes that the code may take."""
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def unit_tests(answer: str, tests: str | Sequence[str], seconds: float) -> bool:
    """Return whether the code of an answer passes all tests: statements, such as assertions, that raise nothing.

    Code is the last fenced block of the answer, or all of it where there is none. It fails too where it takes longer
    than `seconds` or more than `MEMORY`, or ends its process.
    """
    blocks = _FENCED.findall(answer)
    key = secrets.token_hex(16)
    work = {"code": blocks[-1] if blocks else answer, "tests": _listed(tests), "key": key}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(json.dumps(work).encode(), timeout=seconds)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            out = b""
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return out == key.encode()


def _listed(tests: Any) -> list[str]:
    """Return tests that are a text, a list of texts, or such a list as JSON (ValueError: there is none)."""
    if isinstance(tests, str) and tests.lstrip().startswith("["):
        with suppress(ValueError):
            tests = json.loads(tests)
    tests = [tests] if isinstance(tests, str) else list(tests)
    if not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise ValueError("there are no tests: write a text of statements, or a list of such texts")
    return tests


def main() -> None:
    """Run code and tests in one namespace, and write the key where nothing was raised."""
    out = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # what the code prints is no result
    work = json.loads(sys.stdin.read())
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    names: dict[str, Any] = {"__name__": "answer"}
    for source in (work["code"], *work["tests"]):
        exec(compile(source, "<answer>", "exec"), names)
    os.write(out, work["key"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()
