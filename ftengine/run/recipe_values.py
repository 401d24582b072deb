"""Types of recipe values that may be written in several forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationInfo, WithJsonSchema


def _named(value: Any) -> Any:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError("a component is a name, or a mapping with `name` and its options")
    return dict(value)


Named = Annotated[dict[str, Any], BeforeValidator(_named)]
"""A component: a name, or a mapping with `name` and its options."""

NamedList = Annotated[
    list[Named], BeforeValidator(lambda value: [value] if isinstance(value, (str, Mapping)) else value)
]
"""A list of components, or one component without a list."""


Choice = Annotated[
    Literal["auto", "off"] | NamedList,
    Field(union_mode="left_to_right"),
    BeforeValidator(lambda value: "off" if value is False else value),
]
"""Components; "auto" for all that suit, "off" for none. YAML reads `off` as false."""


def possible(value: str) -> str:
    """Return a path (ValueError: a part of it is longer than NAME_BYTES)."""
    longest = max((len(part.encode(errors="replace")) for part in value.split("/")), default=0)
    if longest > NAME_BYTES:
        raise ValueError(
            f"a name of {longest:,} bytes is too long for a file or folder; at most {NAME_BYTES} are allowed"
        )
    return value


NAME_BYTES = 255
"""The longest name that file systems allow."""

Place = Annotated[str, Field(min_length=1), AfterValidator(possible)]
"""A path, or another name of a source."""

_TEXT = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?[KMGTkmgt]?i?[bB]?$"}
_NUMBER = {"type": "integer", "exclusiveMinimum": 0}
Bytes = Annotated[ByteSize, Field(gt=0), WithJsonSchema({"anyOf": [_TEXT, _NUMBER]})]
"""A number of bytes, or text such as "6 GiB" or "500 MB"."""

_SHARE = re.compile(r"(\d*[.,]?\d+) ?(%?)")


def _held_out(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str) and (share := _SHARE.fullmatch(value.strip())):
        fraction = float(share[1].replace(",", ".")) / (100 if share[2] else 1)
        example = f", for example data.{info.field_name}: {fraction:g}" if 0 < fraction < 1 else ""
        raise ValueError(f"write a share as a number between 0 and 1{example}")
    if isinstance(value, bool) or value == "":
        raise ValueError("write a fraction between 0 and 1, a file, or null")
    if isinstance(value, (int, float)) and not 0 < value < 1:
        raise ValueError("a fraction must be above 0 and below 1")
    return possible(value) if isinstance(value, str) else value


_Fraction = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
_File = Annotated[Text, Field(json_schema_extra={"pattern": r"^(?!\s*\d*[.,]?\d+ ?%?\s*$)"})]  # "10%" is no file
HeldOut = Annotated[float | str | None, BeforeValidator(_held_out, json_schema_input_type=_Fraction | _File | None)]
"""A part of the data that is held out: a fraction, a file, or none."""
