"""The JSON schema of recipes with the installed components, with which editors complete and check recipes.

Everything that the schema accepts is a recipe, except for values that an option's own validator refuses (an invalid
regular expression) and for keys that contradict each other. A recipe may also be valid where the schema is stricter,
for example with a number written as text.
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
"""Recipe keys that hold components, with the kind of each."""

LENGTHS = (("minLength", "minItems"), ("maxLength", "maxItems"))


class _Plain(GenerateJsonSchema):
    """Generates a schema without titles, which repeat the keys; a type without a JSON schema allows any value."""

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
    """Return a model's schema and its definitions, whose names begin with a prefix."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}", schema_generator=_Plain)
    definitions = {f"{prefix}{name}": part for name, part in schema.pop("$defs", {}).items()}
    for part in (schema, *definitions.values()):
        part.pop("title", None)
        for key in part.get("properties", {}).values():
            # For a text or a list, pydantic writes only the limit of the text.
            key |= {other: key[word] for word, other in LENGTHS if word in key and "anyOf" in key}
    return schema, definitions


def _reference(part: dict[str, Any]) -> str:
    """Return the name of the definition that a key refers to, alone or among other choices."""
    choices = (part, *part.get("anyOf", ()))
    return next(choice["$ref"] for choice in choices if "$ref" in choice).removeprefix("#/$defs/")


def _named(key: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the schema of a key that holds a component or a list of components, with the installed names."""
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
        left: the name that leaves the choice to the engine ("auto"), which takes the options of each component.
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
    # A component with required options needs a mapping. Editors show descriptions of names.
    descriptions = ["the one that suits" for _ in others] + [entry.summary for entry in bare]
    names = {"enum": [*others, *(entry.name for entry in bare)], "enumDescriptions": descriptions}
    return {**definitions, kind: {"anyOf": [names, *mappings]}}
