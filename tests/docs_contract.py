"""The tables of docs/plugins/kinds.md, made of the contract's docstrings: `python tests/docs_contract.py`."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from ftengine import api
from ftengine.plugins.registry import KINDS

PAGE = Path(__file__).parents[1] / "docs" / "plugins" / "kinds.md"
BASES = (api.Component, *(base for base, _ in KINDS.values()))


def page(text: str) -> str:
    """Return the page's text with the first table of each class made anew."""
    for base in BASES:
        pattern = rf"(?s)(\n## `{base.__name__}`\n.*?)(\n\|.*?)(\n(?!\|))"
        text, count = re.subn(pattern, lambda found, base=base: f"{found[1]}\n{table(base)}{found[3]}", text, count=1)
        assert count, f"no section with a table on {base.__name__}"
    return text


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


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
