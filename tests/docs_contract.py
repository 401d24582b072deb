"""Pages made of docstrings: `python tests/docs_contract.py FOLDER`, for `make docs`."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from ftengine import RunRecords, api, equivalence
from ftengine.cli.components import describe
from ftengine.plugins.class_validation import SORTS
from ftengine.plugins.registry import KINDS, Registry

PUBLIC = (
    "ftengine",
    "ftengine.api",
    "ftengine.chat",
    "ftengine.generation",
    "ftengine.data",
    "ftengine.equivalence",
    "ftengine.errors",
    "ftengine.evaluation",
    "ftengine.identity",
    "ftengine.model",
    "ftengine.ops",
    "ftengine.testing",
    "ftengine.text",
)
BASES = (api.Component, *(base for base, _ in KINDS.values()), *SORTS, api.InferencePath)
OBJECTS: tuple[type, ...] = (
    api.LoadedModel,
    api.LoadRequest,
    api.Labels,
    api.View,
    api.TrainingContext,
    api.Metric,
    api.Baseline,
    api.Finding,
    api.AuditedData,
    api.AuditedRows,
    RunRecords,
    api.ExportSource,
    api.Exported,
    api.DrawRequest,
    api.Draws,
)
"""What crosses between the engine and components."""


def kinds_page() -> str:
    """Return a section on each kind: what its docstring says, and a table of its members."""
    lines = ["# Kinds", "", "What each kind writes. Complete examples: examples/plugins/ in the repository."]
    for base in BASES:
        lines += ["", f"## `{base.__name__}`", "", described(base), "", table(base)]
    for thing in OBJECTS:
        rows = [f"| `{name}` | {cell(text)} |" for name, text in fields(thing)]
        lines += ["", f"## `{thing.__name__}`", "", described(thing), "", "| field | what it is |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def described(thing: Any) -> str:
    """Return a docstring without its arguments, a paragraph a line."""
    paragraphs = (inspect.getdoc(thing) or "").split("Args:\n")[0].strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def fields(thing: type) -> list[tuple[str, str]]:
    """Return what components are given in an object: its arguments, properties and methods, with their texts."""
    own = {name: value for name, value in vars(thing).items() if name[0] != "_" and getattr(value, "__doc__", "")}
    members = [
        (name, first(value.fget if isinstance(value, property) else getattr(value, "func", value)))
        for name, value in own.items()
        if isinstance(value, property | cached_property) or inspect.isroutine(value)
    ]
    below = [(name, text) for name, _, text in attributes(thing)]
    return [*arguments(thing), *below, *members]


def table(base: type[api.Component]) -> str:
    """Return the table of one class: what is to be written, what may be, attributes, traits."""
    own = vars(base)
    methods = {name: own[name] for name in own if name[0] != "_" and inspect.isroutine(inspect.unwrap(own[name]))}
    written = [name for name in methods if name in base.__abstractmethods__]
    rows = [(f"`{name}{signature(methods[name])}`", "to write", first(methods[name])) for name in written]
    rows += [(f"`{name}`", what, text) for name, what, text in attributes(base)]
    rows += [
        (f"`{name}{signature(methods[name])}`", "optional", first(methods[name]))
        for name in methods
        if name not in written
    ]
    if "traits" in own:
        rows += [(f"`traits.{name}`", "trait", text) for name, text in arguments(type(base.traits))]
    return "\n".join(["| member | | what it is |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def first(thing: Any) -> str:
    """Return the first paragraph of a docstring, in one line."""
    text = inspect.getdoc(inspect.unwrap(thing)) or ""
    return " ".join(text.partition("\n\n")[0].split())


def signature(method: Any) -> str:
    """Return a method's signature without self and types."""
    parameters = list(inspect.signature(inspect.unwrap(getattr(method, "__func__", method))).parameters.values())[1:]
    return str(inspect.Signature([p.replace(annotation=p.empty) for p in parameters]))


def attributes(base: type) -> Iterator[tuple[str, str, str]]:
    """Yield the public attributes of a class that have a docstring below them: name, whether it must be set, text."""
    body = ast.parse(inspect.getsource(base)).body[0].body  # type: ignore[attr-defined]
    for statement, below in pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            what = "attribute" if statement.value else "to set"
            yield statement.target.id, what, " ".join(str(below.value.value).split())  # type: ignore[union-attr]


def arguments(traits: type) -> Iterator[tuple[str, str]]:
    """Yield the fields that a class of traits adds, with what its docstring says of them; inherited ones last."""
    for cls in traits.__mro__:
        text = (inspect.getdoc(cls) or "").partition("Args:\n")[2] if cls is not object else ""
        name, said = "", list[str]()
        for line in [*text.split("\n"), "    end: "]:
            if line.startswith("    ") and line[4:5] != " ":
                if name:
                    names, words = name.split(", "), " ".join(" ".join(said).split())
                    yield from ((one, words) for one in names)
                name, _, rest = line.strip().partition(":")
                said = [rest]
            else:
                said.append(line)


def components_page() -> str:
    """Return a section on each component in the box: its docstring, its options and its metrics."""
    lines = ["# Components", "", "What `ftengine plugins show NAME` prints of each component in the box."]
    registry = Registry()
    for entry in (
        entry for kind in KINDS for entry in registry.entries(kind) if entry.origin.distribution == "ftengine"
    ):
        component = describe(entry)
        lines += ["", f"## {entry.kind} `{entry.name}`", "", described(entry.cls)]
        lines += ["", f"Paper: {component.paper}"] if component.paper else []
        if component.options:
            lines += ["", "| option | default | allowed | what it does |", "|---|---|---|---|"]
        for option in component.options:
            default = "required" if option.required else f"`{json.dumps(option.default, ensure_ascii=False)}`"
            allowed, text = cell(option.allowed), cell(option.description)
            lines.append(f"| `{option.name}` | {default.replace('|', chr(92) + '|')} | {allowed} | {text} |")
        if component.metrics:
            lines += ["", "| metric | better | meaning |", "|---|---|---|"]
        for name, metric in component.metrics.items():
            better = {True: "higher", False: "lower", None: ""}[metric["higher_is_better"]]
            lines.append(f"| `{name}` | {better} | {cell(metric['meaning'])} |")
    return "\n".join(lines) + "\n"


def names_page() -> str:
    """Return a table of every name that plugins may import, with its signature and the first paragraph of its text."""
    lines = ["# Names", "", "What a plugin may import."]
    for name in PUBLIC:
        module = importlib.import_module(name)
        texts = assigned(module)
        lines += ["", f"## `{name}`", "", "| name | what it is |", "|---|---|"]
        lines += [
            f"| `{called(module, one)}` | {text_of(getattr(module, one), texts.get(one, ''))} |"
            for one in module.__all__
        ]
    return "\n".join(lines) + "\n"


def tolerances_page() -> str:
    """Return a table of the constants of ftengine.equivalence."""
    rows = ["| tolerance | | what is compared | the largest fault that passes |", "|---|---|---|---|"]
    for name, text in assigned(equivalence).items():
        what, _, fault = text.partition("\n\n")
        rows.append(f"| `{name}` | {getattr(equivalence, name):.2g} | {cell(what)} | {cell(fault)} |")
    return "\n".join(["# Tolerances", "", "Of `ftengine.equivalence`.", "", *rows]) + "\n"


def hidden_types(known: set[str]) -> dict[str, str]:
    """Return types of ours that signatures of api, model and testing name and that nobody can import, with where."""
    found: dict[str, str] = {}
    rooms = ("api", "chat", "generation", "identity", "model", "testing")
    for module in (importlib.import_module(f"ftengine.{room}") for room in rooms):
        for name in module.__all__:
            thing = getattr(module, name)
            home = importlib.import_module(getattr(thing, "__module__", "builtins"))
            if not home.__name__.startswith("ftengine.") or home.__name__ in HIDDEN:
                continue
            source = ast.parse(inspect.getsource(home))
            foreign = {a.asname or a.name for n in ast.walk(source) if is_foreign(n) for a in n.names}
            for annotation in annotations(ast.parse(textwrap.dedent(inspect.getsource(thing)))):
                for one in (x.id for x in ast.walk(annotation) if isinstance(x, ast.Name)):
                    if one[0].isupper() and one not in known | foreign and not hasattr(builtins, one):
                        found[one] = f"{module.__name__}.{name}"
    return found


HIDDEN = ("ftengine.api.figures", "ftengine.api.personal")
"""Modules of which only some names are for plugins."""


def is_foreign(node: ast.AST) -> bool:
    """Say whether a node imports something that is not ours."""
    return (isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("ftengine")) or isinstance(
        node, ast.Import
    )


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the types in public signatures and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (node.name[0] != "_" or node.name == "__init__"):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield from filter(None, [*(a.annotation for a in every), node.returns])
        elif isinstance(node, ast.ClassDef):
            yield from (x.annotation for x in node.body if isinstance(x, ast.AnnAssign) and x.target.id[0] != "_")


def assigned(module: Any) -> dict[str, str]:
    """Return the texts below what is assigned in the modules that a package's names come from."""
    tree = ast.parse(inspect.getsource(module))
    homes = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    found: dict[str, str] = {}
    for home in [module.__name__, *(one for one in homes if one.startswith("ftengine."))]:
        body = ast.parse(inspect.getsource(importlib.import_module(home))).body
        for statement, below in pairwise(body):
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found |= {one.id: str(below.value.value) for one in targets if isinstance(one, ast.Name)}
    return found


def called(module: Any, name: str) -> str:
    """Return a name, of a function with its arguments."""
    thing = getattr(module, name)
    if not inspect.isfunction(inspect.unwrap(thing)):
        return name
    parameters = inspect.signature(inspect.unwrap(thing)).parameters.values()
    return f"{name}{inspect.Signature([p.replace(annotation=p.empty) for p in parameters])}"


def text_of(thing: Any, text: str) -> str:
    """Return the first paragraph on a name, fit for a table."""
    return cell(
        (text or (first(thing) if isinstance(thing, type) or inspect.isroutine(thing) else "")).partition("\n\n")[0]
    )


def cell(text: str) -> str:
    """Return a text as it stands in a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kinds.md").write_text(kinds_page(), encoding="utf-8")
    (folder / "components.md").write_text(components_page(), encoding="utf-8")
    (folder / "names.md").write_text(names_page(), encoding="utf-8")
    (folder / "tolerances.md").write_text(tolerances_page(), encoding="utf-8")
