"""The value of `data.train`: one source, or several with their weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema

from ftengine.plugins.option_errors import explain
from ftengine.run.recipe_values import Named, Place, Text

_READER = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]})


class TrainSource(BaseModel, extra="forbid", allow_inf_nan=False):
    """One of several sources of training rows."""

    source: Place = Field(description="a file, folder or hub id, as in data.train")
    weight: float | None = Field(
        None, gt=0, le=1e6, description="its share of an epoch's examples, relative to the others'; null: each row once"
    )
    reader: Annotated[Named | None, _READER] = Field(None, description="null: data.reader")
    columns: dict[str, str] | None = Field(None, description="null: data.columns")


def _sources(value: Any) -> Any:
    """Validate the sources of a list one by one, so that an error names the wrong one."""
    if not isinstance(value, list) or not value:
        return value
    sources = list[TrainSource]()
    for number, entry in enumerate(value):
        try:
            content = {"source": entry} if isinstance(entry, str) else entry
            sources.append(content if isinstance(content, TrainSource) else TrainSource.model_validate(content))
        except ValidationError as error:
            raise ValueError(explain(error, TrainSource, f"data.train.{number}.")) from None
    unique = dict[str, TrainSource]()
    for source in sources:
        other = unique.setdefault(f"{_real(source.source)} {_own(source)}", source)
        if other is not source:
            spelt = "" if other.source == source.source else f", also as {other.source!r}"
            raise ValueError(f"the source {source.source!r} is named twice{spelt}; name it once, with a weight")
    without = [source.source for source in sources if source.weight is None]
    if 0 < len(without) < len(sources):
        raise ValueError(f"{without[0]!r} has no weight, but other sources have; set it for all sources or for none")
    return sources


Sources = Annotated[
    Place | Annotated[list[TrainSource], Field(min_length=1)],
    BeforeValidator(_sources, json_schema_input_type=Text | Annotated[list[Text | TrainSource], Field(min_length=1)]),
]
"""One source or a list of sources."""


def listed(train: str | Sequence[TrainSource]) -> Sequence[TrainSource]:
    """Return the sources of training as a sequence, even if there is one."""
    return (TrainSource.model_validate({"source": train}),) if isinstance(train, str) else train


def names(train: str | Sequence[TrainSource]) -> list[str]:
    """Return the names of sources; those that read one file differently have their options behind it."""
    sources = listed(train)
    files = [_real(source.source) for source in sources]
    several = {file for file in files if files.count(file) > 1}
    return [
        f"{source.source} ({own})" if file in several and (own := _own(source)) else source.source
        for file, source in zip(files, sources, strict=True)
    ]


def name_of(train: str | Sequence[TrainSource]) -> str:
    """Return the names of sources, joined."""
    return " + ".join(names(train))


def _real(source: str) -> str:
    """Return the real path of a file or folder; another source normalised."""
    path = os.path.expanduser(source)
    return os.path.realpath(path) if os.path.exists(path) else os.path.normpath(source)


def _own(source: TrainSource) -> str:
    """Return a source's own reader and columns, in words."""
    reader = source.reader or {}
    options = {"reader": reader.get("name"), **reader, "columns": source.columns}
    return ", ".join(f"{key} {value}" for key, value in options.items() if key != "name" and value is not None)
