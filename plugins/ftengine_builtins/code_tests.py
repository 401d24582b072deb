"""Reward unit-tests: an answer's code, run against tests in a process of its own with limits.

The file is opened by itself in the scoring process, so it imports nothing of ftengine; it is also the program of the
process that runs the code. That is no sandbox: the code has the user's rights, but no environment, no files to write,
and limits of time and memory.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

MEMORY = 1 << 30
"""Bytes that the code may take."""
_FENCED = re.compile(r"(?<!\S)```[ \t]*([^\s`]*)[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PYTHON = re.compile(r"(python|py)[\d.]*", re.IGNORECASE)


def unit_tests(answer: str, tests: str | Sequence[str], seconds: float) -> bool:
    """Return whether the code of an answer passes all tests: statements, such as assertions, that raise nothing.

    It fails too where it takes longer than `seconds` or more than `MEMORY`, or ends its process.
    """
    key = secrets.token_hex(16)
    work = {"code": code_of(answer), "tests": _listed(tests), "key": key, "seconds": seconds}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-s", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0"},  # sets of texts have one order, so that an answer has one reward
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


def code_of(answer: str) -> str:
    """Return the last fenced block of Python, else the last without a language, else the whole answer."""
    blocks = _FENCED.findall(answer)
    python = [code for language, code in blocks if _PYTHON.fullmatch(language)]
    return (python or [code for language, code in blocks if not language] or [answer])[-1]


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
    """Run code and tests in one module, and write the key where nothing was raised."""
    del sys.path[0]  # the folder of this file
    out = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # what the code prints is no result
    work = json.loads(sys.stdin.read())
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Should the process that waits for this one be killed, this one ends all the same.
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(work["seconds"]) + 1,) * 2)
    signal.setitimer(signal.ITIMER_REAL, work["seconds"] + 1)
    module = sys.modules["answer"] = types.ModuleType("answer")  # where dataclasses and pickle look for it
    for source in (work["code"], *work["tests"]):
        exec(compile(source, "<answer>", "exec", dont_inherit=True), vars(module))
    os.write(out, work["key"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()
