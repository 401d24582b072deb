"""Learning rates of single parts of a model, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field
from torch import nn

from ftengine.errors import NoMatch
from ftengine.model import matching, near_modules, regex, trainable

Pattern = Annotated[str, Field(min_length=1), AfterValidator(regex)]
Rates = Annotated[
    dict[Pattern, Annotated[float, Field(gt=0, le=1e6)]],
    Field(
        description="learning rates of single modules and all in them, as multiples of train.learning_rate, by name or "
        "regular expression, as {multi_modal_projector: 10}; the first match counts"
    ),
]


def relative_rates(module: nn.Module, rates: Mapping[str, float]) -> dict[str, float]:
    """Return the multiple of the learning rate of each trainable parameter, by name; 1 where no pattern matches.

    A pattern matches a parameter's path, that of a module which it is in, or the ending of either after a dot.

    Raises:
        NoMatch: a pattern decides no rate: it matches nothing that trains, or earlier patterns match all of it.
    """
    names = list(trainable(module))
    matched = {pattern: matching(names, rf"(.*\.)?({pattern})(\..*)?", full_match=True) for pattern in rates}
    found = {name: pattern for pattern in reversed(rates) for name in matched[pattern]}
    for pattern in rates:
        if pattern not in found.values():
            before = found.get(next(iter(matched[pattern]), ""))
            why = f"only what {before!r} before it does" if before else "nothing that trains"
            near = "" if before else near_modules(pattern, [path for path, _ in module.named_modules() if path])
            raise NoMatch(f"rate_pattern {pattern!r} matches {why}.{near} Correct it, move it up, or leave it out.")
    return {name: rates[found[name]] if name in found else 1.0 for name in names}
