"""The contract stays small: a class a kind, what must be written first, all that may be written below it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Protocol

import pytest
from hinge import HingePreference
from quiz import Quiz
from spread import Spread

from ftengine import api
from ftengine.errors import PluginError
from ftengine.plugins.class_validation import SORTS
from ftengine.plugins.registry import KINDS, Registry, registry_of
from ftengine_studio.rule import Preferences
from ftengine_vision_language.task import ImageTextToText

ROOT = Path(__file__).parents[1]
MOST_KINDS, MOST_ABSTRACT, MOST_PROTOCOLS = 14, 6, 8

BASES = [api.Component, *(base for base, _ in KINDS.values()), *SORTS]
COMPONENTS = (*KINDS, "component")
"""What variables that hold components are called."""


def members(cls: type) -> set[str]:
    """Return the public members that a class adds, declared attributes included."""
    own = {*vars(cls), *vars(cls).get("__annotations__", {})}
    return {name for name in own if not name.startswith("_")}


def optional(base: type[api.Component]) -> list[str]:
    """Return the methods of a kind that its components may write."""
    return sorted(
        name
        for cls in (base, api.Component)
        for name, member in vars(cls).items()
        if name[0] != "_" and name not in base.__abstractmethods__ and inspect.isroutine(inspect.unwrap(member))
    )


def box() -> list[type]:
    """Return the classes of all components in the box, and of plugins in the tests and beside the box."""
    registry = Registry()
    own = [entry.cls for kind in KINDS for entry in registry.entries(kind) if entry.origin.distribution == "ftengine"]
    return [*own, Quiz, Spread, HingePreference, ImageTextToText, Preferences]


BOX = box()
MOMENTS = {event.moment for event in api.Event.__subclasses__()}
"""What a callback may write: each moment of a run has its method, whoever uses it."""


def test_the_contract_is_a_class_a_kind_of_few_abstract_members() -> None:
    assert len(KINDS) <= MOST_KINDS
    own = {base.__name__: len(base.__abstractmethods__ & vars(base).keys()) for base in BASES}
    assert {name: count for name, count in own.items() if count > MOST_ABSTRACT} == {}
    protocols = [name for name in api.__all__ if Protocol in getattr(getattr(api, name), "__bases__", ())]
    assert len(protocols) <= MOST_PROTOCOLS, protocols
    assert [base.__name__ for base in BASES if not is_dataclass(base.traits)] == []
    assert {name for name in optional(api.Callback) if name.startswith("on_")} == MOMENTS


@pytest.mark.parametrize(
    ("base", "name"),
    [(base, name) for base in BASES[1:] for name in optional(base) if name not in MOMENTS],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_what_is_optional_is_used(base: type[api.Component], name: str) -> None:
    if name == "check_options":
        users = [cls for cls in BOX if api.overrides(cls, name)]
    else:
        users = [cls for cls in BOX if issubclass(cls, base) and api.overrides(cls, name)]
    assert users, f"no component has {base.__name__}.{name}: take it out"


def test_traits_are_used() -> None:
    for base in set(BASES[1:]) - set(SORTS):
        for field in fields(base.traits):
            values = {
                getattr(cls.traits, field.name) for cls in BOX if field.name in {f.name for f in fields(cls.traits)}
            }
            computed = field.name == "needs_validation"  # which options of an object decide
            assert len(values) > 1 or computed, f"{base.__name__}'s trait {field.name} is {values} everywhere"


def offered(base: type[api.Component], *beside: type, **members: object) -> None:
    """Offer a component with these members as a plugin would (PluginError: it is refused)."""
    hook = next(hook for kind, hook in KINDS.values() if issubclass(base, kind))
    whole = {"name": "thing", **{name: lambda self, *_, **__: None for name in base.__abstractmethods__}, **members}
    declared = {"head": "causal-lm", "modality": "text"} if issubclass(base, api.Task) else {}
    cls = type("Thing", (base, *beside), {"__module__": __name__, **declared, **whole})
    registry_of({"p": type("P", (), {hook: staticmethod(api_hook(hook, cls))})()})


def api_hook(name: str, cls: type) -> object:
    """Return a hook's implementation that offers one class."""
    from ftengine import hookimpl

    def hook() -> list[type]:
        return [cls]

    hook.__name__ = name
    return hookimpl(hook)


@pytest.mark.parametrize(
    ("base", "name", "meant"),
    [
        (api.Regularizer, "penality", "penalty"),
        (api.Regularizer, "on_steps_end", "on_step_end"),
        (api.Task, "learn_label", "learn_labels"),
        (api.Strategy, "regulariser", "regularizer"),
        (api.Strategy, "parameter_groups", "param_groups"),
        (api.Strategy, "saves", "save"),
        (api.Evaluator, "detail", "details"),
        (api.Augmenter, "set_processors", "set_processor"),
        (api.ModelLoader, "check_sources", "check_source"),
    ],
)
def test_a_method_that_is_nearly_one_of_the_contract_is_refused(
    base: type[api.Component], name: str, meant: str
) -> None:
    with pytest.raises(PluginError) as refused:
        offered(base, **{name: lambda self: None})
    assert repr(name) in str(refused.value)
    assert repr(meant) in str(refused.value)


@pytest.mark.parametrize(
    ("base", "name", "there"),
    [
        (api.Regularizer, "on_epoch_end", "'on_step_end', 'on_train_end'"),
        (
            api.Callback,
            "on_log",
            "'on_train_begin', 'on_pre_optimizer_step', 'on_step_end', 'on_evaluate', 'on_save', 'on_run_end', "
            "'on_exception'",
        ),
        (api.Strategy, "on_save", "none"),
    ],
)
def test_a_hook_of_another_library_is_refused(base: type[api.Component], name: str, there: str) -> None:
    with pytest.raises(PluginError) as refused:
        offered(base, **{name: lambda self: None})
    assert f"{name!r}; {base.__name__} has these on_ methods: {there}." in str(refused.value)


@pytest.mark.parametrize(
    ("name", "sort"),
    [
        ("generate", "GenerativeTask"),
        ("short_generation", "GenerativeTask"),
        ("joint_loss", "InBatchTask"),
        ("for_reference", "ReferenceTask"),
        ("fit", "FittedEvaluator"),
        ("ask_models", "ModelEvaluator"),
        ("runs_code", "CodeEvaluator"),
        ("trials", "IntervalEvaluator"),
    ],
)
def test_a_member_that_only_a_sort_has_is_refused_elsewhere(name: str, sort: str) -> None:
    with pytest.raises(PluginError) as refused:
        offered(
            next(base for base, _ in KINDS.values() if issubclass(getattr(api, sort), base)),
            **{name: lambda self: None},
        )
    assert repr(name) in str(refused.value)
    assert f"api.{sort}" in str(refused.value)


@pytest.mark.parametrize(
    ("members", "argument"),
    [
        ({"parts": lambda self, row, processor: 2}, "part"),
        ({"traits": api.TaskTraits(reads_following=True)}, "following"),
    ],
)
def test_a_task_takes_what_its_members_ask_for(members: dict[str, object], argument: str) -> None:
    def encode(self: object, example: object, processor: object, *, max_length: object = None) -> None: ...

    with pytest.raises(PluginError, match=f"'encode' takes no `{argument}=None`"):
        offered(api.Task, encode=encode, **members)
    offered(api.Task, **members)  # whatever is given


@pytest.mark.parametrize(
    ("base", "name", "missing"),
    [
        (api.Strategy, "save", "load"),
        (api.Regularizer, "load_state_dict", "state_dict"),
    ],
)
def test_half_of_a_pair_is_refused(base: type[api.Component], name: str, missing: str) -> None:
    with pytest.raises(PluginError) as refused:
        offered(base, **{name: getattr(base, name)})
    assert repr(missing) in str(refused.value)


@pytest.mark.parametrize("base", [api.Regularizer, api.Augmenter])
def test_what_writes_none_of_its_kinds_methods_is_refused(base: type[api.Component]) -> None:
    with pytest.raises(PluginError) as refused:
        offered(base, penalties=lambda self: None, check_options=lambda self: None)
    assert f"none of {base.__name__}'s methods" in str(refused.value)


def test_traits_of_another_kind_are_refused() -> None:
    with pytest.raises(PluginError) as refused:
        offered(api.Strategy, traits=api.TaskTraits())
    assert "StrategyTraits" in str(refused.value)


def test_a_method_that_cannot_be_called_as_the_contract_calls_it_is_refused() -> None:
    with pytest.raises(PluginError) as refused:
        offered(api.Evaluator, set_labels=lambda self, labels: None)
    assert "set_labels" in str(refused.value)


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
DECLARED = set().union(*(members(base) for base in BASES))


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


def test_engine_asks_overrides_and_builds_by_factories() -> None:
    assert {file: list(rebuilt(text)) for file, text in ENGINE.items() if any(rebuilt(text))} == {}


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
