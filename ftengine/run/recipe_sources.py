"""What `data.train` holds: one source, or several with their weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema

from ftengine.plugins.option_errors import explain
from ftengine.run.recipe_values import Named, Place, Text

_READER = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]})


class TrainSource(BaseModel, extra="forbid", allow_inf_nan=False):
    """One of several sources of training."""

    source: Place = Field(description="as data.train has one alone")
    weight: float | None = Field(
        None, gt=0, le=1e6, description="its share of an epoch's examples, relative to the others'; null: each row once"
    )
    reader: Annotated[Named | None, _READER] = Field(None, description="null: data.reader")
    columns: dict[str, str] | None = Field(None, description="null: data.columns")


def _sources(value: Any) -> Any:
    """Read the sources of a list one by one, so that an error names the one that is wrong."""
    if not isinstance(value, list) or not value:
        return value
    sources = list[TrainSource]()
    for number, one in enumerate(value):
        try:
            one = {"source": one} if isinstance(one, str) else one
            sources.append(one if isinstance(one, TrainSource) else TrainSource.model_validate(one))
        except ValidationError as error:
            raise ValueError(explain(error, TrainSource, f"data.train.{number}.")) from None
    known = dict[str, TrainSource]()
    for one in sources:
        other = known.setdefault(f"{_real(one.source)} {_own(one)}", one)
        if other is not one:
            spelt = "" if other.source == one.source else f", as {other.source!r} too"
            raise ValueError(f"the source {one.source!r} is named twice{spelt}; name it once, with a weight")
    without = [one.source for one in sources if one.weight is None]
    if 0 < len(without) < len(sources):
        raise ValueError(f"{without[0]!r} has no weight, and others have; give every source one, or none")
    return sources


Sources = Annotated[
    Place | Annotated[list[TrainSource], Field(min_length=1)],
    BeforeValidator(_sources, json_schema_input_type=Text | Annotated[list[Text | TrainSource], Field(min_length=1)]),
]
"""A source, or several."""


def listed(train: str | Sequence[TrainSource]) -> Sequence[TrainSource]:
    """Return the sources of training, also where there is one."""
    return (TrainSource.model_validate({"source": train}),) if isinstance(train, str) else train


def names(train: str | Sequence[TrainSource]) -> list[str]:
    """Return what sources are called: where several are of one file, each with how it is read."""
    sources = listed(train)
    files = [_real(one.source) for one in sources]
    several = {file for file in files if files.count(file) > 1}
    return [
        f"{one.source} ({own})" if file in several and (own := _own(one)) else one.source
        for file, one in zip(files, sources, strict=True)
    ]


def name_of(train: str | Sequence[TrainSource]) -> str:
    """Return sources in words."""
    return " + ".join(names(train))


def _real(source: str) -> str:
    """Return a source, of a file or folder its one path."""
    path = os.path.expanduser(source)
    return os.path.realpath(path) if os.path.exists(path) else os.path.normpath(source)


def _own(one: TrainSource) -> str:
    """Return in words how a source is read that is said of it alone."""
    reader = one.reader or {}
    options = {"reader": reader.get("name"), **reader, "columns": one.columns}
    return ", ".join(f"{key} {value}" for key, value in options.items() if key != "name" and value is not None)
