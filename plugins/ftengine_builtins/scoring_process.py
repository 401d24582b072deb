"""Running a Python function that scores answers in its own process, so that its faults do not end the run.

This file is also the program of that process, so it imports only the standard library. The process reads one JSON
object {"answer", "columns"} per line, and writes {"score"} or {"error"}.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

STARTED = 120.0
"""Seconds in which the function's file has to be imported."""
ENDED = "the function ended its process"
LONGEST = 200
"""Characters of an error that are kept."""


class Scorer:
    """Calls a function with one answer after the other, each with a time limit.

    Args:
        target: FILE.py:FUNCTION, or MODULE:FUNCTION of an installed module.
        timeout: seconds after which the process is killed; the next answer starts a new one.
    """

    def __init__(self, target: str, timeout: float, replies: bool = False) -> None:
        self.target, self.timeout, self._replies = target, timeout, replies
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], Any] = lambda: None
        self._waiting = b""

    def start(self) -> str:
        """Start the process if there is none; return why the function cannot be loaded, or ""."""
        if self._process is not None:
            return ""
        self._waiting = b""
        self._process = subprocess.Popen(
            [sys.executable, __file__, self.target, str(self.timeout + 1), *(["replies"] if self._replies else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _end, self._process)
        try:
            response = self._read(STARTED)
        except BrokenPipeError:
            response = {"error": ENDED}
        problem = "its import takes too long" if response is None else str(response.get("error", ""))
        if problem:
            self.close()
        return problem

    def score(self, answer: str, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"score": number}, or {"error": its message}, or {} on a timeout."""
        if problem := self.start():
            return {"error": problem}
        asked = json.dumps({"answer": answer, "columns": dict(columns)}, default=str)
        try:
            self._process.stdin.write(asked.encode() + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            response = self._read(self.timeout)
        except BrokenPipeError:
            response = {"error": ENDED}
        if not response or response.get("error") == ENDED:
            self.close()
        return response or {}

    def close(self) -> None:
        """End the process and its child processes."""
        self._process = None
        self._end()

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """Return the process's next message; None on a timeout (BrokenPipeError: it has ended)."""
        source = self._process.stdout.fileno()  # type: ignore[union-attr]
        while b"\n" not in self._waiting:
            if not select.select([source], [], [], seconds)[0]:
                return None
            if not (piece := os.read(source, 1 << 16)):
                raise BrokenPipeError
            self._waiting += piece
        line, _, self._waiting = self._waiting.partition(b"\n")
        return json.loads(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):  # what waits to be written has no reader
            stream.close()  # type: ignore[union-attr]


def file_of(target: str) -> Path | None:
    """Return the file that defines a function; None if there is no such module."""
    place = target.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place)
    spec = importlib.util.find_spec(place)
    return None if spec is None or spec.origin is None else Path(spec.origin)


def files_with(file: Path, target: str) -> list[Path]:
    """Return the file of a function and the files that it imports, directly or indirectly, from the same code base.

    Nothing is executed. The code base is the folder from which its imports start; for an installed package, that
    package.

    Args:
        target: the function, as `Scorer` takes it.
    """
    place = target.rpartition(":")[0]
    inside = 0 if place.endswith(".py") else place.count(".") + (file.name == "__init__.py")
    root = file.parents[inside]
    only = place.partition(".")[0] if root.name in _INSTALLED else ""
    known, waiting = dict[Path, None](), [*([] if place.endswith(".py") else _files_at([root], place.split("."))), file]
    while waiting:
        if (source := waiting.pop()) in known:
            continue
        with suppress(SyntaxError, ValueError, OSError):  # told where the function is looked for
            code = source.read_bytes()
            known[source] = None
            for level, path in _imported(ast.parse(code)):
                if level or not only or path[0] == only:
                    waiting += _files_at(list(source.parents)[level - 1 : level] if level else [root], path)
    return list(known)


_INSTALLED = ("site-packages", "dist-packages")
"""Names of folders of installed packages."""


def _files_at(folders: list[Path], path: list[str]) -> Iterator[Path]:
    """Yield the files that importing a dotted path executes, from the outermost package on."""
    for folder in folders:  # none, where a relative import leaves the file system
        for name in path:
            places = folder / f"{name}.py", folder / name / "__init__.py"
            yield from (place for place in places if place.is_file())
            folder /= name


def _imported(tree: ast.Module) -> Iterator[tuple[int, list[str]]]:
    """Yield the dotted paths that code imports, anywhere, and their levels: 0 is absolute, 1 the same package.

    A name imported from a module may be a module too, so it is part of the path.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            yield from ((node.level, [*module, alias.name]) for alias in node.names)


def functions_in(source: str) -> dict[str, tuple[list[str], list[str]]]:
    """Return the functions of a file by name, with required and optional parameters; nothing is executed.

    Functions with further positional-only parameters are left out, as these cannot be given by name.

    Raises:
        SyntaxError: the file is not valid Python.
    """
    parameters = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and len(node.args.posonlyargs) < 2:
            placed = [*node.args.posonlyargs, *node.args.args]
            cut = len(placed) - len(node.args.defaults)
            named = list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
            needed = [*placed[:cut], *(parameter for parameter, default in named if default is None)]
            optional = [*placed[cut:], *(parameter for parameter, default in named if default is not None)]
            parameters[node.name] = [parameter.arg for parameter in needed], [parameter.arg for parameter in optional]
    return parameters


def _function(target: str) -> Callable[..., Any]:
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        sys.path[0] = str(Path(place).parent)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    else:
        del sys.path[0]
        module = importlib.import_module(place)
    return getattr(module, name)


def _number(value: Any) -> float:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
        raise TypeError(f"it returned {value!r}, which is neither True nor False nor a finite number")
    return float(value)


def _texts(value: Any) -> list[str] | None:
    value = [value] if isinstance(value, str) else value
    if value is not None and not (isinstance(value, list) and value and all(isinstance(x, str) for x in value)):
        raise TypeError(f"it returned {value!r}, which is neither a text, nor a list of texts, nor None")
    return value


def _message(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({Path(where[0].filename).name}:{where[0].lineno})" if where else ""
    return f"{type(error).__name__}: {error}"[:LONGEST] + place


def limit_memory() -> None:
    """Limit the process to half of the machine's memory, so that a function that takes more raises MemoryError."""
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (half if most == resource.RLIM_INFINITY else min(half, most), most))


def main(target: str, seconds: float, replies: bool = False) -> None:
    """Serve a function; a call that exceeds the time limit ends the process."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the function prints is no answer

    def say(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    limit_memory()
    signal.setitimer(signal.ITIMER_REAL, STARTED)
    try:
        function = _function(target)
    except BaseException as error:  # whatever the user's file raises
        say(error=_message(error))
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    say()
    for line in sys.stdin:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            value = function(asked["answer"], **asked["columns"])
            response = {"reply": _texts(value)} if replies else {"score": _number(value)}
        except BaseException as error:
            response = {"error": _message(error)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(**response)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), "replies" in sys.argv[3:])
