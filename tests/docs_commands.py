"""What the documents say, in pieces that can be run or compared: blocks, tables, code, commands."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from runs import start_commands_here

from ftengine.cli import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))

STEPS = ("train.max_steps=2", "train.batch_size=2", "evaluation.training_sample=4")
FEW = (*STEPS, "evaluation.answers=2", "evaluation.generate.max_new_tokens=4")

SHORTER = {
    r"--set train\.max_steps=40\b": " ".join(f"--set {override}" for override in FEW),
    r'"train\.max_steps=40"': ", ".join(f'"{override}"' for override in FEW),
    r"(?m)^ftengine predict (runs/(support|prefer)|support\.yaml) .*": r"\g<0> --option max_new_tokens=4",
    r"(?m)^python examples/sums/prepare\.py .*": r"\g<0> --train 8 --test 6",
    r"(?m)^ftengine predict examples/sums/sums.yaml .*": r"\g<0> --option max_new_tokens=12",
    r"(?m)^ftengine train examples/sums/sums\.yaml .*": r"\g<0> "
    + " ".join(f"--set {override}" for override in FEW[:-1]),
    r"(?m)^ftengine plan (support|prefer|prefer-answers|search)\.yaml$": r"\g<0> --no-measure",
    r"(?m)^ftengine train (prefer|prefer-answers|search)\.yaml .*": r"\g<0> "
    + " ".join(f"--set {override}" for override in STEPS),
    r"(?m)^torchrun .*": r"\g<0> " + " ".join(f"--set {override}" for override in FEW),
    r"(?m)^ftengine bench kernels .*": r"\g<0> --providers frozen,eager,compiled",
}
"""How a command or a snippet is made to take less time; whatever else stands there is run as it stands.

A plan that measures a step is tests/cli/test_commands_on_a_run.py's.
"""

ROWS = 20
"""Rows that are left of a file after a command wrote data; with `SHORTER`, all that is changed."""

NOT_RUN = {
    "source .venv/bin/activate": "the tests run in that environment already",
    "python -m pytest ftengine-bitfit": "tests/cli/test_plugins_new.py runs what `plugins new` writes",
}
"""Commands that are not run, and why. Of `make` commands the target is looked up: they take minutes."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        language: what stands behind the fence.
        text: what lies inside.
        file: the name that a line such as `` `name.py`: `` above it gives, or "".
        heading: of the section.
        place: document and line, for messages.
    """

    language: str
    text: str
    file: str
    heading: str
    place: str


@dataclass(frozen=True)
class Table:
    """A table: its section's heading and its cells, without the header."""

    heading: str
    rows: list[list[str]]

    def names(self) -> list[str]:
        """Return what stands in code in the first column, without what is in parentheses there."""
        return [name for row in self.rows for name in code(row[0])]


def blocks(document: Path, *languages: str) -> list[Block]:
    """Return a document's fenced blocks in these languages, in order."""
    found = []
    text = document.read_text(encoding="utf-8")
    for match in re.finditer(r"(?:^`([\w./-]+)`:\n\n)?^```(\w+)\n(.*?)^```$", text, re.M | re.S):
        file, language, inside = match.groups()
        line = text.count("\n", 0, match.start(2)) + 1
        headings = re.findall(r"^#+ (.*)$", prose(text[: match.start()]), re.M)
        if language in languages:
            place = f"{document.relative_to(ROOT)}:{line}"
            found.append(Block(language, inside, file or "", (headings or [""])[-1], place))
    return found


def prose(text: str) -> str:
    """Return Markdown without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def headings(document: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", prose(document.read_text(encoding="utf-8")), re.M)


def tables(document: Path) -> list[Table]:
    """Return a document's tables in order."""
    found = []
    heading = ""
    for part in re.split(r"^(#+ .*)$", prose(document.read_text(encoding="utf-8")), flags=re.M):
        if part.startswith("#"):
            heading = part.lstrip("# ")
        for rows in re.findall(r"(?:^\|.*\|\n?)+", part, re.M):
            cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.splitlines()]
            found.append(Table(heading, cells[2:]))
    return found


def table(document: Path, heading: str) -> Table:
    """Return the one table of a section."""
    (found,) = [table for table in tables(document) if table.heading == heading]
    return found


def code(text: str) -> list[str]:
    """Return what stands between single backticks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def commands(block: Block) -> list[str]:
    """Return what a console block has typed, lines that end in a backslash joined with the next."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]


def shortened(text: str) -> str:
    for long, short in SHORTER.items():
        text = re.sub(long, short, text)
    return text


def run_command(command: str, folder: Path) -> None:
    """Run what a document has typed, in a folder, which is the working directory as well, and in this process.

    Under torchrun what it starts runs once; two processes are what tests/engine/test_processes.py is about.

    Raises:
        AssertionError: it fails, or is no command that these tests know how to run.
    """
    if command in NOT_RUN:
        return
    program, *arguments = shlex.split(shortened(command))
    typed = None
    if program == "echo" and arguments[1:3] == ["|", "ftengine"]:
        typed, _, program, *arguments = arguments
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert set(arguments) <= set(targets), f"{command}: the Makefile has {targets}"
    elif program == "torchrun":
        assert arguments[:5] == ["--standalone", "--nproc-per-node", "2", "-m", "ftengine"], command
        run_command(shlex.join(arguments[4:]), folder)
    elif program == "ftengine":
        with pytest.MonkeyPatch.context() as patch:
            start_commands_here(patch)
            result = CliRunner().invoke(main, arguments, input=typed, prog_name="ftengine")
        assert result.exit_code == 0, f"{command}: exit {result.exit_code}\n{result.output}"
    else:
        assert program == "python", f"{command}: add {program!r} here, or the command to NOT_RUN"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", arguments)
            runpy.run_path(str(folder / arguments[0]), run_name="__main__")
        named = [Path(folder, name) for name in arguments]
        inside = [file for place in named if place.is_dir() for file in place.glob("*.jsonl")]
        for file in [*(file for file in named if file.suffix == ".jsonl"), *inside]:
            file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]))


def run_block(block: Block, folder: Path) -> None:
    """Type a console block's commands, or execute a Python block; one with a file name becomes that file."""
    if block.language == "console":
        for command in commands(block):
            run_command(command, folder)
    elif block.file:
        (folder / block.file).write_text(block.text, encoding="utf-8")
    else:
        exec(compile(shortened(block.text), block.place, "exec"), {"__name__": "__main__"})


def pretend_installed(
    name: str, entry_points: Iterable[Mapping[str, Mapping[str, str]]], site: Path, patch: Any
) -> None:
    """Put a folder on the path as if a distribution, 0.1.0, were installed there.

    Args:
        entry_points: names and targets by group, as pyproject.toml files have them.
        site: the folder, which holds its modules, or which `patch` puts beside theirs.
        patch: pytest's monkeypatch.
    """
    info = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {target}\n" for key, target in found.items())
        for one in entry_points
        for group, found in one.items()
    ]
    (info / "entry_points.txt").write_text("".join(lines))
    patch.syspath_prepend(site)
