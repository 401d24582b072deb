"""What `data.train` holds: one source, or several with their weights."""

from __future__ import annotations

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
    names = [one.source for one in sources]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"the source {twice!r} is named twice; name it once, with a weight")
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


def name_of(train: str | Sequence[TrainSource]) -> str:
    """Return sources in words."""
    return " + ".join(one.source for one in listed(train))
