"""The engine knows no component and no metric by name: they are all plugins."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from ftengine.plugins.registry import KINDS, Registry

ENGINE = Path(__file__).parents[1] / "ftengine"
BESIDE = ("ops",)
"""The low-rank operations are no part of the engine; strategies call them."""
FILES = {
    file.relative_to(ENGINE).as_posix(): file
    for file in sorted(ENGINE.rglob("*.py"))
    if file.relative_to(ENGINE).parts[0] not in BESIDE
}

WORDS = {
    "loss": "what training minimises, whatever measures it later; keys of metrics.jsonl",
    "callable": "Python's word for what can be called",
    "package": "Python's word for what pip installs",
    "transformers": "the library, in versions and imports",
    "duplicates": "rows that are equal, which data/split.py keeps on one side",
    "leaks": "rows on both sides of a split, which data/split.py finds; recipe key data.leaks",
    "dropout": "an operation of torch, which training/probe.py looks at wherever a model computes it; what switches it "
    "off is named beside a reference, which has none",
    "embedding": "an operation of torch, which model/in_float32.py computes without a copy of the table",
    "lengths": "of examples, by which batches are made",
    "reading": "a word of the language",
    "json": "the module of Python's standard library",
    "csv": "the module of Python's standard library",
    "parquet": "pyarrow's module",
    "text": "what a model reads, in a task's modality; a column of rows",
    "full": "a word of the language",
    "prefix": "a word of the language: how keys and names begin",
    "precision": "of numbers: float32, bfloat16",
    "regression": "a kind of labels, and the criterion for it",
    "generation": "the options of generations, as `Evaluator.generation` names them",
    "memorisation": "a probe, which any one evaluator may serve; recipe key evaluation.memorisation",
    "calibration": "what a task fitted on validation, `Task.calibration`; a key of a classifier's config.json",
    "refusal": "a probe, which any one evaluator may serve; recipe key evaluation.refusal",
    "prompt": "what a model is asked; a key of generations, as `Task.generate` returns them",
    "peft": "the library, whose version a run records",
    "tool-use": "tool_use, the type of a block of content in Anthropic's messages",
    "adapter": "the folder of a run's trained part, which is part of the run directory's layout",
}
"""Names that are words as well, and what else they mean; none may be a reference to the component."""


def registered() -> dict[str, set[str]]:
    """Return the names of all components by kind, and of the metrics that evaluators declare."""
    registry = Registry()
    names = {kind: {entry.name for entry in registry.entries(kind)} for kind in KINDS}
    metrics = [evaluator.metrics for evaluator in registry.build_all("evaluator")]
    names["metric"] = {name for declared in metrics if isinstance(declared, Mapping) for name in declared}
    return names


NAMES = registered()
HEADS = {entry.cls.head for entry in Registry().entries("task")}
"""What loaders put on top of models; some tasks are called by theirs."""
NAMES_HEADS = "testing/"
"""The room that ships a model with each head."""


def words_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, word) for identifiers, attributes and string literals; docstrings and comments are left out.

    A docstring is any string that is a statement of its own, so those below attributes count too. What is imported
    from elsewhere, and keywords of calls, are names of others.
    """
    tree = ast.parse(source)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


@cache
def words_of_files() -> dict[str, list[tuple[int, str]]]:
    return {name: list(words_of(file.read_text(encoding="utf-8"))) for name, file in FILES.items()}


def places(name: str) -> list[str]:
    """Return where the engine names a component, as `file:line`; identifiers have _ where names have -."""
    spellings = {name, name.replace("-", "_")}
    files = {
        file: words for file, words in words_of_files().items() if not (name in HEADS and file.startswith(NAMES_HEADS))
    }
    return [f"{file}:{line}" for file, words in files.items() for line, word in words if word in spellings]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in sorted(names)])
def test_engine_names_no_component(kind: str, name: str) -> None:
    assert name in WORDS or places(name) == []


@pytest.mark.parametrize("name", WORDS)
def test_every_exception_is_needed(name: str) -> None:
    assert any(name in names for names in NAMES.values())
    assert places(name)


def test_every_kind_has_components() -> None:
    assert [kind for kind, names in NAMES.items() if not names] == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('if strategy == "lora":\n    pass\n', {"strategy", "lora"}),
        ("macro_f1 = 1\n", {"macro_f1"}),
        ("def f(perplexity): ...\n", {"f", "perplexity"}),
        ("figures.accuracy\n", {"figures", "accuracy"}),
        ('"""Trains a LoRA adapter."""\nx: int\n"""lora"""  # lora\n', {"x", "int"}),
        ('def f():\n    """lora"""\n', {"f"}),
    ],
)
def test_words_are_found_outside_of_docstrings(source: str, words: set[str]) -> None:
    assert {word for _, word in words_of(source)} == words
