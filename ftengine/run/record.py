"""JSON files of a run as frozen pydantic models, which write and read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ftengine.errors import RunError
from ftengine.run.directory import RunDirectory
from ftengine.text import redact_json

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11

Model = TypeVar("Model", bound=BaseModel)


class Part(BaseModel):
    """A part of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, content: Any) -> Any:
        return each(content, _whole_characters)


class Record(Part):
    """A JSON file of a run; an undefined number is nan in Python and null in the file."""

    file: ClassVar[str]
    """Its name in the run's folder."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return each(self.model_dump(mode="json"), without_nan)

    def write(self, run: RunDirectory) -> None:
        """Write the file atomically."""
        run.write_json(self.file, self.to_json())

    @classmethod
    def read(cls, run: RunDirectory) -> Self:
        """Read the file (RunError: it is missing, damaged, or of another version; names file and field)."""
        return validated(cls, run.read_json(cls.file), run.path / cls.file)


class RedactedRecord(Record):
    """A file that people read; likely personal data in it, such as in names of labels, is redacted."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, redacted."""
        return redact_json(super().to_json())


def validated(model: type[Model], content: Any, file: Path) -> Model:
    """Return content as a model (RunError: it does not fit; names file and field)."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        raise RunError(
            f"{str(file)!r}: {field}: {first['msg']}. The file is damaged, or another version of ftengine wrote it."
        ) from None


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested mapping by dotted key; lists and empty mappings are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in content.items():
        nested = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return JSON values with `change` applied to every key, text, number, truth value and null."""
    if isinstance(value, dict):
        return {change(key): each(inner, change) for key, inner in value.items()}
    return [each(inner, change) for inner in value] if isinstance(value, (list, tuple)) else change(value)


def _whole_characters(value: Any) -> Any:
    """Replace halves of surrogate pairs, which data may hold, by the replacement character."""
    is_valid = not isinstance(value, str) or value.isascii()
    return value if is_valid else value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def without_nan(value: Any) -> Any:
    """Return None for NaN and infinity, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
