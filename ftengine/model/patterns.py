"""Patterns that name modules, by PEFT's rules of matching."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import regex as engine
from pydantic import BeforeValidator
from torch import nn

from ftengine.errors import InputError, NoMatch

PATIENCE = 2.0
"""Seconds for one match; a usual one takes microseconds."""


def regex(pattern: str) -> str:
    """Check that an option's pattern compiles and return it (ValueError: it does not)."""
    try:
        engine.compile(pattern)
    except (engine.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


def whole_match(pattern: str, path: str) -> bool:
    """Return whether a regular expression matches a whole path (InputError: matching takes too long)."""
    try:
        return engine.fullmatch(pattern, path, timeout=PATIENCE) is not None
    except TimeoutError:
        raise InputError(
            f"pattern {pattern!r} takes too long to match {path!r}: it has repeats inside of repeats. Write it simpler."
        ) from None
    except (engine.error, OverflowError, RecursionError) as error:
        raise InputError(f"pattern {pattern!r} is not a regular expression: {error}.") from None


def _names(value: Any) -> Any:
    if isinstance(value, str) and value:
        return regex(value)
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("write a list of names or paths, or one regular expression for whole paths")
    return value


ModuleNames = Annotated[str | list[str], BeforeValidator(_names)]
"""An option that names modules: a regular expression for whole paths, or a list of paths and their endings."""


def matches_name(path: str, names: Iterable[str]) -> bool:
    """Return whether a module path is one of the names or ends with "." and one of them."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def find_modules(module: nn.Module, patterns: str | Sequence[str], option: str) -> dict[str, list[str]]:
    """Return the module paths that match each pattern, in the model's order.

    Args:
        patterns: a regular expression for whole paths, or a list of paths and their endings (`ModuleNames`).
        option: the option that holds them, for the message: "strategy.targets".

    Raises:
        NoMatch: a pattern matches no module; the message shows close names.
    """
    is_expression = isinstance(patterns, str)
    paths, matches = [path for path, _ in module.named_modules() if path], {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches[pattern] = matching(paths, pattern, full_match=is_expression)
        if not matches[pattern]:
            names = sorted({name for path in paths if not (name := path.rpartition(".")[2]).isdigit()})
            called = f"{', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
            how = (
                " A string is a regular expression for the whole path; put plain names in a list."
                if is_expression
                else ""
            )
            raise NoMatch(
                f"{option}: {pattern!r} matches no module of {type(module).__name__}. Its modules are called {called}."
                f"{near_modules(pattern, paths)}{how}"
            )
    return matches


def matching(paths: Iterable[str], pattern: str, *, full_match: bool) -> list[str]:
    """Return the paths that match a pattern: a regular expression for the whole path, or a path or its ending.

    Args:
        full_match: the pattern is a regular expression.
    """
    return [path for path in paths if (whole_match(pattern, path) if full_match else matches_name(path, [pattern]))]


def near_modules(pattern: str, paths: Iterable[str], shown: Callable[[str], str] = repr) -> str:
    """Return " Did you mean 'x' or 'y'?" with the most similar module paths, or last parts of paths.

    "" if none is similar.
    """
    paths = list(paths)
    candidates = [*dict.fromkeys(path.rpartition(".")[2] for path in paths), *paths]
    near = difflib.get_close_matches(pattern, candidates, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(shown, near))}?" if near else ""
