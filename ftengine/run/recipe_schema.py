"""The recipe as a JSON schema, with the components that are installed, so that editors complete and check recipes.

What the schema accepts is a recipe, but for what an option's own validator refuses (a pattern that is no regular
expression) and for keys that contradict each other. The reverse does not hold: a recipe may also write a number as
text, say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from ftengine.plugins.registry import RECIPE_KEYS, Entry, Registry
from ftengine.run.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "ftengine recipe"

PLACES = {**{key: kind for kind, key in RECIPE_KEYS.items()}, "evaluation.robustness": "augmenter"}
"""Recipe keys that hold components, and of which kind."""

LENGTHS = (("minLength", "minItems"), ("maxLength", "maxItems"))


class _Plain(GenerateJsonSchema):
    """Without titles, which only repeat the keys; what JSON schema has no words for may be anything."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of recipes that name components of a registry."""
    schema, definitions = _of(Recipe, "")
    left: dict[str, str] = {}
    for place, kind in PLACES.items():
        *sections, key = place.split(".")
        section = schema
        for name in sections:
            section = definitions[_reference(section["properties"][name])]
        part = section["properties"][key]
        if isinstance(part.get("default"), dict):
            left[kind] = part["default"]["name"]
        section["properties"][key] = _named(part, kind)
    for kind in dict.fromkeys(PLACES.values()):
        definitions |= _components(kind, registry.entries(kind), left.get(kind))
    return {"$schema": DIALECT, "title": TITLE, **schema, "$defs": dict(sorted(definitions.items()))}


def _of(model: type[BaseModel], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a model's schema and the definitions it refers to, whose names begin with a prefix."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}", schema_generator=_Plain)
    definitions = {f"{prefix}{name}": part for name, part in schema.pop("$defs", {}).items()}
    for part in (schema, *definitions.values()):
        part.pop("title", None)
        for key in part.get("properties", {}).values():
            # Of a text or a list pydantic gives the limit of the text alone.
            key |= {other: key[word] for word, other in LENGTHS if word in key and "anyOf" in key}
    return schema, definitions


def _reference(part: dict[str, Any]) -> str:
    """Return the name of the definition that a key refers to, which other choices may stand beside."""
    choices = (part, *part.get("anyOf", ()))
    return next(choice["$ref"] for choice in choices if "$ref" in choice).removeprefix("#/$defs/")


def _named(key: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a key of the recipe that holds a component, or several, in place of the one that knows no names."""
    component: dict[str, Any] = {"$ref": f"#/$defs/{kind}"}
    if isinstance(key.get("default"), str):
        words = {"enum": [key["default"], "off", False]}  # YAML reads `off` as false
        component = {"anyOf": [words, component, {"type": "array", "items": component}]}
    if isinstance(key.get("default"), list):
        component = {"anyOf": [component, {"type": "array", "items": component}]}
    return {**{word: key[word] for word in ("default", "description") if word in key}, **component}


def _components(kind: str, entries: Iterable[Entry], left: str | None) -> dict[str, Any]:
    """Return the definitions of a kind and of its components: a name, or a mapping with it and the options.

    Args:
        left: the name by which a recipe leaves the choice to the engine, with the options of whichever is chosen.
    """
    others = [] if left is None else [left]
    definitions: dict[str, Any] = {}
    bare, mappings = [], []
    for entry in entries:
        place = f"{kind}.{re.sub('[^A-Za-z0-9_-]', '_', entry.name)}"
        schema, inner = _of(entry.cls.Config, f"{place}.")
        required = schema.get("required", [])
        if not required:
            bare.append(entry)
        definitions |= inner
        definitions[place] = {
            **schema,
            "description": entry.summary,
            "properties": {"name": {"enum": [entry.name, *others]}, **schema.get("properties", {})},
            "required": ["name", *required],
        }
        mappings.append({"$ref": f"#/$defs/{place}"})
    # A component with options that must be given is no name alone. Descriptions of names are read by editors.
    told = ["the one that suits" for _ in others] + [entry.summary for entry in bare]
    names = {"enum": [*others, *(entry.name for entry in bare)], "enumDescriptions": told}
    return {**definitions, kind: {"anyOf": [names, *mappings]}}
