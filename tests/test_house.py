"""The layout: rooms of ftengine, and files and functions that fit a reader's head."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    file
    for top in ("ftengine", "plugins", "benchmarks")
    for file in (ROOT / top).rglob("*.py")
    if ".venv" not in str(file)
)

ROOMS = {
    *(
        "api",
        "chat",
        "cli",
        "data",
        "engine",
        "equivalence",
        "evaluation",
        "generation",
        "identity",
        "model",
        "ops",
        "parallel",
    ),
    *("plugins", "report", "run", "testing", "text", "training"),
}
FILES = {"__init__.py", "__main__.py", "_native.pyi", "build.json", "errors.py", "py.typed"}
"""What lies at ftengine's root beside the rooms; the build writes `_native` and build.json."""

LONGEST_FILE, LONGEST_FUNCTION = 400, 60
"""Lines."""


def test_nothing_lies_at_the_root_but_rooms() -> None:
    here = {path.name for path in (ROOT / "ftengine").iterdir() if path.name != "__pycache__" and path.suffix != ".so"}
    assert here - FILES == ROOMS


def test_files_and_functions_are_short() -> None:
    faults = []
    for file in SOURCES:
        text, name = file.read_text(encoding="utf-8"), file.relative_to(ROOT)
        if (lines := len(text.splitlines())) > LONGEST_FILE:
            faults.append(f"{name}: {lines} lines")
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        sizes = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
        faults += [
            f"{name}: {function} has {lines} lines" for function, lines in sizes.items() if lines > LONGEST_FUNCTION
        ]
    assert faults == []


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by name alone: of two alike, the second is an error where both folders are run."""
    names = [file.name for folder in ("tests", "plugins") for file in (ROOT / folder).rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
