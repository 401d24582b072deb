"""Freezing by pattern: what does not train although everything else does."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from torch import nn

from ftengine.api import LoadedModel
from ftengine.errors import NoMatch, RecipeError
from ftengine_builtins.strategies.targets import matches_name


def freeze(loaded: LoadedModel, patterns: str | Sequence[str]) -> dict[str, list[str]]:
    """Freeze what patterns name and return what each matched.

    Args:
        loaded: the model; its new modules train whatever is frozen around them.
        patterns: a string is a regular expression for whole paths of modules or parameters; an item of a
            list is such a path or its ending after a dot.

    Raises:
        NoMatch: a pattern matches nothing, or new modules alone.
        RecipeError: nothing is left to train.
    """
    module = loaded.module
    new = tuple(f"{name}." for name in loaded.new_modules)
    parameters = dict(module.named_parameters())
    paths = [*(path for path, _ in module.named_modules() if path), *parameters]
    matches: dict[str, list[str]] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        whole = isinstance(patterns, str)
        found = [path for path in paths if (re.fullmatch(pattern, path) if whole else matches_name(path, [pattern]))]
        frozen = [p for name, p in parameters.items() if _inside(name, found) and not f"{name}.".startswith(new)]
        if not frozen:
            raise _nothing(pattern, found, paths, module, whole)
        for parameter in frozen:
            parameter.requires_grad_(False)
        matches[f"freeze {pattern}"] = [path for path in found if not _inside(path.rpartition(".")[0], found)]
    if not new and not any(p.requires_grad for p in parameters.values()):
        raise RecipeError(f"strategy.freeze {patterns!r} leaves nothing to train. Freeze less.")
    return matches


def _inside(path: str, modules: Sequence[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _tied(found: Sequence[str], module: nn.Module) -> tuple[str, str] | None:
    """Return a parameter within `found` that is another one too, and the name under which that trains."""
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if _inside(name, found) and known[id(parameter)] != name:
            return name, known[id(parameter)]
    return None


def _nothing(pattern: str, found: Sequence[str], paths: Sequence[str], module: nn.Module, whole: bool) -> NoMatch:
    if found:
        tied = _tied(found, module)
        if tied is not None:
            return NoMatch(
                f"strategy.freeze pattern {pattern!r} matches {tied[0]!r}, whose parameter is tied to {tied[1]!r}. "
                f"Freeze {tied[1].rpartition('.')[0] or tied[1]!r}, which freezes both."
            )
        return NoMatch(
            f"strategy.freeze pattern {pattern!r} matches {found[0]!r}, where nothing can be frozen: it has no "
            "parameters, or was initialised afresh and has to train. Take the pattern out."
        )
    known = [*dict.fromkeys(path.rpartition(".")[2] for path in paths), *paths]
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    how = " A string is a regular expression for the whole path; put plain names in a list." if whole else ""
    shown = list(dict.fromkeys(path for path in paths if path.count(".") <= 1 and not path[-1].isdigit()))[:12]
    return NoMatch(
        f"strategy.freeze pattern {pattern!r} matches no module or parameter of {type(module).__name__}.{hint}{how} "
        f"It has {', '.join(shown)}, …"
    )
