"""Wording of option errors: pydantic's findings as ftengine says them."""

from __future__ import annotations

import re
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ftengine.errors import did_you_mean
from ftengine.plugins.other_tools import hint

_ASKED = {
    "a number above {gt}": "greater_than",
    "{ge} or more": "greater_than_equal",
    "a number below {lt}": "less_than",
    "{le} or less": "less_than_equal",
    "a multiple of {multiple_of}": "multiple_of",
    "{expected}": "literal_error enum",
    "true or false": "bool_type bool_parsing",
    "a whole number": "int_type int_parsing int_from_float",
    "a number": "float_type float_parsing",
    "a finite number": "finite_number",
    "text": "string_type",
    "text of {min_length} or more characters": "string_too_short",
    "text of {max_length} or fewer characters": "string_too_long",
    "text that matches {pattern}": "string_pattern_mismatch",
    "a list": "list_type tuple_type set_type",
    "{min_length} items or more": "too_short",
    "{max_length} items or fewer": "too_long",
    "a mapping": "dict_type model_type model_attributes_type",
    "null": "none_required",
    "a number of bytes, such as 6 GB": "byte_size byte_size_unit",
}
EXPECTED = {error: asked for asked, errors in _ASKED.items() for error in errors.split()}
"""What pydantic's commonest errors ask for, by its name of the error; others keep pydantic's words."""

_ALTERNATIVE = re.compile(r"float|str|int|bool|none|constrained-\w+|(?:list|dict|tuple|set|literal|function-\w+)\[.*")
"""The last step of an error's place where a key may hold values of several types: one of these types."""


def explain(error: ValidationError, model: type[Any], prefix: str = "", owner: str = "") -> str:
    """Turn a pydantic error into ftengine's form: key, value, what is allowed, nearest key.

    Args:
        error: from `model`.
        model: what was to be made. It may list under `meant` keys that people write, each with the one of its own that
            they mean, or with a sentence on what to do.
        prefix: of the model's keys.
        owner: whose keys they are, such as " of strategy 'NAME'".
    """
    parts = []
    unknown: dict[str, list[str]] = {}  # by what is allowed
    wrong: dict[str, tuple[list[str], Any]] = {}  # by key: what would be allowed, and what is there
    for item in error.errors():
        steps = [str(step) for step in item["loc"]]
        path = [step for step in steps[:-1] if not step.startswith("function-")] + steps[-1:]  # lists with validators
        key = prefix + ".".join(path)
        if item["type"] == "extra_forbidden":
            section = _section(model, path[:-1])
            known, meant = sorted(getattr(section, "model_fields", ())), getattr(section, "meant", {})
            said = hint(path[-1], meant, key.removesuffix(path[-1]), known) or did_you_mean(path[-1], known)
            allowed = f"Allowed: {', '.join(known)}" if known else "It has no options"
            if said:
                parts.append(f"unknown key {key!r}{owner}. {allowed}.{said}")
            else:
                unknown.setdefault(allowed, []).append(repr(key))
        elif item["type"] == "missing":
            parts.append(f"key {key!r}{owner} is missing; it is required.")
        elif item["type"] in EXPECTED:
            if len(path) > 1 and _ALTERNATIVE.fullmatch(path[-1]):
                key = prefix + ".".join(path[:-1])
            limits = {k: f"{v:g}" if isinstance(v, float) else v for k, v in item.get("ctx", {}).items()}
            expected = EXPECTED[item["type"]].format(**limits)
            wrong.setdefault(key, ([], item.get("input")))[0].append(expected)
        else:
            said = item["msg"].removeprefix("Value error, ")
            stop = "" if said.endswith(".") else "."
            got = f" (got {_shown(item.get('input'))})"
            parts.append(f"key {key!r}{owner}: {said}{got}{stop}" if path else said + stop)
    for allowed, keys in unknown.items():
        parts.append(f"unknown key{'s' * (len(keys) > 1)} {', '.join(keys)}{owner}. {allowed}.")
        if len(keys) > 2 and owner:
            parts.append(f"Are they another's? `--set {prefix.rstrip('.')}=NAME` takes a component without options.")
    parts += [
        f"key {key!r}{owner}: must be {' or '.join(dict.fromkeys(expected))}, not {_shown(value)}"
        f"{_example(model, key.removeprefix(prefix), key, expected, value)}."
        for key, (expected, value) in wrong.items()
    ]
    return " ".join(parts)


def _example(model: type[Any], path: str, key: str, expected: list[str], value: Any) -> str:
    """Return a single value in the list or section that its key holds, as an example; "" where there is none.

    Of a text that YAML took for a mapping, as `query: `, the text in quotes.
    """
    form: Any = None
    if "text" in expected and isinstance(value, dict) and [*value.values()] == [None]:
        form = f"{next(iter(value))}: "
    if value is not None and not isinstance(value, (dict, list)):
        if expected == ["a list"] and isinstance(value, str):
            form = [value]
        elif expected == ["a mapping"] and (section := _section(model, path.split("."))) is not None:
            form = _with_first(section, value)
    return f", for example {yaml.safe_dump({key: form}, default_flow_style=True).strip()[1:-1]}" if form else ""


def _section(model: type[Any], path: list[str]) -> type[Any] | None:
    """Return the section that a key holds, also where it may be null instead."""
    for step in path:
        field = getattr(model, "model_fields", {}).get(step)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if section is None:
            return None
        model = section
    return model


def _with_first(section: type[BaseModel], value: Any) -> dict[str, Any]:
    """Return a value as a section's first key, or that key's default where it may not be the value."""
    name, field = next(iter(section.model_fields.items()))
    try:
        section.model_validate({name: value}, strict=True)
    except ValidationError:
        return {} if field.is_required() else {name: field.default}
    return {name: value}


def _shown(value: Any) -> str:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
