"""The contract stays small: base classes hold what every component needs, abilities what some do."""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Protocol

import pytest
from dpo import DPO
from quiz import Quiz
from spread import Spread

from ftengine import api
from ftengine.plugins.registry import KINDS, Registry

ROOT = Path(__file__).parents[1]
MOST_MEMBERS = 40
"""Public members of all base classes together, inherited ones counted once."""
FEWEST_OVERRIDES = 2
"""Components in the box that must give another value or body to a member with a default, or it belongs elsewhere."""

BASES = [api.Component, *(base for base, _ in KINDS.values())]
COMPONENTS = (
    "task",
    "strategy",
    "evaluator",
    "augmenter",
    "regularizer",
    "loader",
    "optimizer",
    "reader",
    "schedule",
    "callback",
    "rule",
    "audit",
    "component",
)
"""What variables that hold components are called."""


def members(cls: type) -> set[str]:
    """Return the public members that a class adds, declared attributes included."""
    own = {*vars(cls), *vars(cls).get("__annotations__", {})}
    return {name for name in own if not name.startswith("_")}


def has_default(cls: type, name: str) -> bool:
    """Say whether a member is there without being overridden: a value, or a method that does something."""
    if name not in vars(cls):
        return False
    member = inspect.unwrap(vars(cls)[name])
    return "raise NotImplementedError" not in (inspect.getsource(member) if inspect.isfunction(member) else "")


NO_ABILITIES = {
    "Listener": "whoever follows a run",
    "Estimator": "what evaluators are given",
    "RandomSource": "what augmenters are given",
    "AuditedRows": "what audits are given",
}
"""Protocols that are no abilities of components."""


def abilities() -> dict[str, set[str]]:
    """Return the members of each ability."""
    found = {name: getattr(api, name) for name in api.__all__}
    protocols = {name: cls for name, cls in found.items() if isinstance(cls, type) and Protocol in cls.__bases__}
    return {name: members(cls) for name, cls in protocols.items() if name not in NO_ABILITIES}


def box() -> list[type]:
    """Return the classes of all components in the box."""
    registry = Registry()
    return [entry.cls for kind in KINDS for entry in registry.entries(kind) if entry.origin.distribution == "ftengine"]


BOX = box()
SET_BY_ENGINE = {(api.Task, "labels")}
"""Members that the engine sets: what the training rows told."""
OPTIONAL = [
    (base, name)
    for base in BASES
    for name in sorted(members(base))
    if has_default(base, name) and (base, name) not in SET_BY_ENGINE
]


def test_base_classes_stay_small() -> None:
    counted = {base.__name__: sorted(members(base)) for base in BASES}
    assert sum(map(len, counted.values())) <= MOST_MEMBERS, counted


def test_members_are_counted_where_they_are_declared() -> None:
    assert members(api.Component) == {"name", "Config"}
    assert "name" not in members(api.Strategy)


@pytest.mark.parametrize(("base", "name"), OPTIONAL, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_optional_is_used(base: type, name: str) -> None:
    users = [cls.__name__ for cls in BOX if issubclass(cls, base) and overrides(cls, base, name)]
    assert len(users) >= FEWEST_OVERRIDES, (
        f"{base.__name__}.{name} is overridden by {users or 'none'}: make it an ability"
    )


def overrides(cls: type, base: type, name: str) -> bool:
    """Say whether a component has its own member: as an attribute of its class, or set in a method of it."""
    return getattr(cls, name) is not getattr(base, name) or assigns(cls, name)


def assigns(cls: type, name: str) -> bool:
    """Say whether a method of a component, not of its kind's base class, sets a member."""
    parts = (part for part in cls.__mro__ if part not in BASES and issubclass(part, api.Component))
    methods = [method for part in parts for method in vars(part).values() if inspect.isfunction(method)]
    return any(name in stored(method) for method in methods)


@cache
def stored(method: FunctionType) -> set[str]:
    """Return the names of attributes that a function sets, whatever the object."""
    return {step.argval for step in dis.get_instructions(method) if step.opname == "STORE_ATTR"}


THIRD_PARTY = {"AsksModels": Quiz, "Regularizes": Spread, "SeesModel": DPO}
"""Abilities that no component of the box needs, and who has them: a plugin that the tests train with."""


def test_abilities_are_there_and_used() -> None:
    """Every ability is exported, has members, and some component of the box has it, or one of the tests' plugins."""
    users = {
        name: [
            cls
            for cls in [*BOX, THIRD_PARTY.get(name, object)]
            if all(hasattr(cls, m) or assigns(cls, m) for m in wanted)
        ]
        for name, wanted in abilities().items()
    }
    assert users
    assert [name for name, found in users.items() if not found] == []
    assert [name for name in THIRD_PARTY if len(users[name]) > 1] == []  # then it needs no exception


# What the engine reads of components.


def undeclared(source: str, declared: set[str]) -> Iterator[str]:
    """Yield getattr calls with a literal name, on what is called like a component, for names that nobody declares."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr") and len(node.args) > 1):
            continue
        owner, name = node.args[:2]
        called = ast.unparse(owner).rpartition(".")[2].removesuffix("s")
        if called in COMPONENTS and isinstance(name, ast.Constant) and name.value not in declared:
            yield f"{node.lineno}: {ast.unparse(node)}"


ENGINE = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in sorted((ROOT / "ftengine").rglob("*.py"))
}
DECLARED = set().union(*(members(base) for base in BASES), *abilities().values())


def test_engine_reads_only_declared_members() -> None:
    assert {
        file: list(undeclared(text, DECLARED)) for file, text in ENGINE.items() if any(undeclared(text, DECLARED))
    } == {}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('getattr(task, "secret", None)', 1),
        ('hasattr(self.strategy, "secret")', 1),
        ('getattr(task, "head")', 0),
        ('getattr(module, "secret", None)', 0),
        ("getattr(task, name)", 0),
    ],
)
def test_a_planted_getattr_is_caught(source: str, count: int) -> None:
    assert len(list(undeclared(source, DECLARED))) == count


NO_COMPONENTS = {
    "type(error)(": "an error of the same kind that says where it arose",
    "type(generation)(": "an empty configuration of transformers",
}
"""What is rebuilt by its type and is no component."""


def rebuilt(source: str) -> Iterator[str]:
    """Yield what builds a component from another, or asks whether a method is its base class's."""
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, (ast.Call, ast.Compare)) else ""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Call) and text.startswith("type("):
            if text.startswith(tuple(NO_COMPONENTS)):
                continue
            yield f"{node.lineno}: {text}"
        if isinstance(node, ast.Compare) and text.startswith("type(") and (").") in text and " is " in text:
            yield f"{node.lineno}: {text}"


def test_engine_asks_for_abilities_and_builds_by_factories() -> None:
    assert {file: list(rebuilt(text)) for file, text in ENGINE.items() if any(rebuilt(text))} == {}


@pytest.mark.parametrize("source", ["type(a)(a.config)", "type(self.a)(self.a.config)", "type(a).mix is not Base.mix"])
def test_a_planted_copy_is_caught(source: str) -> None:
    assert list(rebuilt(source))


# Rooms keep their private names.


def private_imports(file: str, source: str) -> Iterator[str]:
    """Yield private names or modules that a module takes from another room of ftengine."""
    room = file.split("/")[1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ftengine"):
            parts = (node.module or "").split(".")
            taken = [name.name for name in node.names]
            if len(parts) == 1 or parts[1] != room:
                yield from (
                    f"{file}:{node.lineno} takes {'.'.join(parts)}.{name}"
                    for name in taken
                    if (name.startswith("_") and not name.endswith("__")) or any(p.startswith("_") for p in parts)
                )


BUILD_INFORMATION = "ftengine/run/environment.py"
"""Reads ftengine._native, the compiled module that says what the processor offers."""


def test_rooms_take_no_private_names_of_others() -> None:
    found = [line for file, text in ENGINE.items() for line in private_imports(file, text)]
    assert [line for line in found if not line.startswith(BUILD_INFORMATION)] == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("from ftengine.data.read import _rows", 1),
        ("from ftengine.engine.plan import _rows", 0),
        ("from ftengine.data._cut import rows", 1),
        ("from ftengine import __version__", 0),
    ],
)
def test_a_planted_private_import_is_caught(source: str, count: int) -> None:
    assert len(list(private_imports("ftengine/engine/x.py", source))) == count
