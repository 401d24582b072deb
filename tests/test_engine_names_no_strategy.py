"""The engine knows no tuning method by name: they are all plugins."""

from __future__ import annotations

import io
import tokenize
from itertools import pairwise
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[1] / "ftengine"
BESIDE = ("ops", "bench")
"""Rooms that are no part of the engine: low-rank operations, and what measures them against PEFT's LoRA."""
FILES = sorted(file for file in ENGINE.rglob("*.py") if file.relative_to(ENGINE).parts[0] not in BESIDE)

METHODS = ("lora", "adapter", "prompt")

INNOCENT = ("typeadapter", "explorat", "promptly")
"""Words that hold a method's name by accident; pydantic has a TypeAdapter."""

ALLOWED = {
    # The folder of a run's trained part; its name is part of the run directory's layout.
    ("run/directory.py", 'TRAINED = "adapter"'),
}
"""Lines that may name a method: (file, line), each with its reason."""


def lines_that_name_a_method(source: str) -> list[str]:
    """Return the lines whose code names a tuning method, docstrings and comments left out.

    A docstring is any string that is a statement of its own, so those below attributes count too.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = [token for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]
    found, before = [], tokenize.NEWLINE
    for token, after in pairwise(code):
        alone = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT) and after.type == tokenize.NEWLINE
        before = token.type
        text = token.string.lower()
        for word in INNOCENT:
            text = text.replace(word, "")
        if any(method in text for method in METHODS) and not (token.type == tokenize.STRING and alone):
            found.append(token.line.strip())
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ENGINE)))
def test_engine_names_no_strategy(file: Path) -> None:
    name = file.relative_to(ENGINE).as_posix()
    named = lines_that_name_a_method(file.read_text(encoding="utf-8"))
    assert [line for line in named if (name, line) not in ALLOWED] == []


@pytest.mark.parametrize(("name", "line"), sorted(ALLOWED))
def test_every_exception_is_needed(name: str, line: str) -> None:
    assert line in lines_that_name_a_method((ENGINE / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        'if strategy == "lora":\n    pass\n',
        "from somewhere import LoRALinear\n",
        "load_adapters(model)\n",
        'print(f"{n} prompt tokens")\n',
        'x = (\n    "one"\n    "an Adapter"\n)\n',
        'found = ["prompt-tuning"]\n',
        '"adapter".upper()\n',
    ],
)
def test_a_planted_name_is_caught(source: str) -> None:
    assert lines_that_name_a_method(source)


@pytest.mark.parametrize(
    "source",
    [
        '"""Trains a LoRA adapter."""\n',
        'def f():\n    # why not a prompt\n    """Loads an adapter."""\n    return 1  # lora\n',
        'class C:\n    x: int\n    """Rank of a LoRA update."""\n\n    y: int\n',
        "from pydantic import TypeAdapter\n",
        'text = "an exploratory run"\n',
    ],
)
def test_docstrings_comments_and_innocent_words_pass(source: str) -> None:
    assert lines_that_name_a_method(source) == []
