"""Descriptions of the installed components and their options, read from their classes."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

from ftengine import api
from ftengine.api.component import is_contract
from ftengine.cli.plugin_cache import cached_fact, store_facts
from ftengine.errors import InputError, PluginError, UnknownName, did_you_mean
from ftengine.plugins.discovery import Plugins, make_plugin_manager
from ftengine.plugins.registry import KINDS, RECIPE_KEYS, Entry, Registry, article
from ftengine.run.environment import plugin_origins

CONSTRAINTS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "minLength": "length ≥",
    "maxLength": "length ≤",
    "minItems": "items ≥",
    "maxItems": "items ≤",
    "multipleOf": "a multiple of",
    "pattern": "matches",
}
"""How constraints of a JSON schema are shown."""


@dataclass(frozen=True)
class Option:
    """One key that a component takes.

    Args:
        type: the type of its values, in words.
        choices: the allowed values of an enumeration; else "".
        default: its value if a recipe does not set it.
        constraints: limits beyond the type, such as "≥ 1".
    """

    name: str
    type: str
    choices: str
    required: bool
    default: Any
    description: str
    constraints: list[str]

    @property
    def allowed(self) -> str:
        """Type and constraints in one phrase."""
        return ", ".join([self.type, *self.constraints])


@dataclass
class Installed:
    """Everything that plugins offer: the components that work, and one sentence for each problem."""

    plugins: Plugins
    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Described:
    """The full description of a component, made of JSON values.

    Args:
        modality: the modality of a task or an augmenter, such as "text"; None for other kinds.
        target: its class as `module:name`.
        writes: the optional methods that it defines, with the first line of each method's contract.
        metrics: the fields of each `Metric` of an evaluator; empty for other kinds.
    """

    kind: str
    name: str
    summary: str
    distribution: str
    version: str
    source: str
    docstring: str
    paper: str | None
    target: str
    options: Sequence[Option]
    traits: Mapping[str, Any]
    writes: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, Any]]
    modality: str | None


Item = TypeVar("Item", Entry, Described)


def installed() -> Installed:
    """Find all installed components; a broken plugin is a problem and does not hide the others."""
    began = time.time_ns()
    plugins = make_plugin_manager()
    broken = [f"plugin {o.name!r} of {o} ({o.target}) failed to load: {o.cause}" for o in plugins.broken()]
    result = Installed(plugins, problems=broken)
    try:
        result.entries = _entries(Registry(plugins))
    except PluginError as first_error:
        result.problems.append(str(first_error))
        for name, plugin in plugins.manager.list_name_plugin():
            single_plugin = make_plugin_manager({name: plugin}, discover=False)
            single_plugin.origins.update(plugins.origins)
            try:
                result.entries += _entries(Registry(single_plugin))
            except PluginError as error:
                if str(error) not in result.problems:
                    result.problems.append(str(error))
    sound = not result.problems and not any(origin.remarks for origin in plugins.origins.values())
    try:
        components = [asdict(describe(entry)) for entry in result.entries]
    # Options and metrics are code of plugins, which may raise anything; `plugins show` reports it for its component.
    except Exception:
        sound, components = False, [listed_component(entry) for entry in result.entries]
    listing = {"components": components, "keys": RECIPE_KEYS, "plugins": plugin_origins(plugins) if sound else None}
    store_facts({"listing": listing}, began)
    return result


def listed_component(entry: Entry) -> dict[str, str]:
    """Return the fields of a component in `plugins list`."""
    return {
        "kind": entry.kind,
        "name": entry.name,
        "summary": entry.summary,
        "distribution": entry.origin.distribution,
        "version": entry.origin.version,
        "source": entry.origin.source,
    }


def describe(entry: Entry) -> Described:
    """Return the full description of a component."""
    return Described(
        **listed_component(entry),
        docstring=entry.docstring,
        paper=entry.cls.paper or None,
        target=f"{entry.cls.__module__}:{entry.cls.__qualname__}",
        options=options(entry.cls.Config),
        traits=json.loads(json.dumps(asdict(entry.cls.traits), default=str)),
        writes=written(entry),
        metrics={metric: asdict(declared) for metric, declared in _metrics(entry).items()},
        modality=getattr(entry.cls, "modality", None),
    )


def described() -> list[Described]:
    """Describe every component that a recipe may name (PluginError: a plugin is broken)."""
    components = _cached_components()
    if components is None:
        registry = Registry(installed().plugins)
        registry.plugins.raise_if_broken()
        components = [describe(entry) for kind in RECIPE_KEYS for entry in registry.entries(kind)]
    return [component for component in components if component.kind in RECIPE_KEYS]


def _cached_components() -> list[Described] | None:
    """Return the cached descriptions, if the installation was sound and has not changed; else None."""
    listing = cached_fact("listing")
    if listing is None or listing["plugins"] is None:
        return None
    return [
        Described(**{**component, "options": [Option(**o) for o in component["options"]]})
        for component in listing["components"]
    ]


def require_kind(kind: str | None) -> None:
    """Refuse a kind of component that does not exist (InputError lists the kinds)."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"--kind {kind!r}: kinds are {', '.join(KINDS)}." + did_you_mean(kind, KINDS))


def find(name: str, kind: str | None) -> Described:
    """Describe the component of a name, or of a name and a kind.

    Raises:
        UnknownName: no component has that name.
        PluginError: no component has that name, and a plugin is broken that may offer it.
        InputError: components of several kinds have that name.
    """
    components = _cached_components()
    if components is not None:
        return _only(components, [], name, kind)
    everything = installed()
    return describe(_only(everything.entries, everything.problems, name, kind))


def _only(components: Sequence[Item], problems: Sequence[str], name: str, kind: str | None) -> Item:
    """Return the component of a name; arguments and errors are those of `find`."""
    of_kind = [component for component in components if kind in (None, component.kind)]
    matching = [component for component in of_kind if component.name == name]
    if not matching and problems:
        raise PluginError(" ".join(problems))
    if not matching:
        names = sorted({component.name for component in of_kind})
        what = kind or "component"
        raise UnknownName(f"no {what} named {name!r}. Installed: {', '.join(names)}." + did_you_mean(name, names))
    if len(matching) > 1:
        kinds = " and ".join(f"{article(component.kind)} {component.kind}" for component in matching)
        raise InputError(f"{name!r} is {kinds}. Choose one with --kind {matching[0].kind}.")
    return matching[0]


def options(config: type[BaseModel]) -> list[Option]:
    """Describe the keys of a component's Config, or of a section of the recipe."""
    schema = config.model_json_schema()
    definitions = schema.get("$defs", {})
    keys = []
    for name, part in schema.get("properties", {}).items():
        model_field = config.model_fields[name]
        keys.append(
            Option(
                name,
                _type(part, definitions),
                " | ".join(value if isinstance(value, str) else json.dumps(value) for value in part.get("enum", ())),
                model_field.is_required(),
                part.get("default"),
                model_field.description or "",
                _constraints(part),
            )
        )
    return keys


def written(entry: Entry) -> dict[str, str]:
    """Return the optional methods of its kind that a component defines, with the first line of each docstring."""
    base: Any = KINDS[entry.kind][0]
    methods: dict[str, Any] = {}
    for kind in (kind for kind in reversed(entry.cls.__mro__) if is_contract(kind)):
        own = {name: x for name, x in vars(kind).items() if name[0] != "_" and inspect.isroutine(inspect.unwrap(x))}
        methods = {**own, **methods}
    optional = [name for name in methods if name not in base.__abstractmethods__ and api.overrides(entry.cls, name)]
    return {name: (inspect.getdoc(methods[name]) or "").partition("\n")[0] for name in optional}


def _metrics(entry: Entry) -> Mapping[str, api.Metric]:
    """Return the metrics of an evaluator; empty for other components."""
    return _built(entry).metrics if issubclass(entry.cls, api.Evaluator) else {}


def _built(entry: Entry) -> Any:
    """Return a component built with its default options; its class if it needs options."""
    return entry.cls if entry.needs_options else entry.cls()


def _entries(registry: Registry) -> list[Entry]:
    return [entry for kind in KINDS for entry in registry.entries(kind)]


def _type(part: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the type that a piece of JSON schema allows, in words."""
    if "$ref" in part:
        return _type(definitions[part["$ref"].rpartition("/")[2]], definitions)
    if "enum" in part or "const" in part:
        return " | ".join(str(value) for value in part.get("enum", [part.get("const")]))
    if "anyOf" in part:
        return " | ".join(dict.fromkeys(_type(choice, definitions) for choice in part["anyOf"]))
    if part.get("type") == "array":
        return f"list of {_type(part.get('items', {}), definitions)}"
    if part.get("type") == "object":
        return "mapping"
    return str(part.get("type", "any value"))


def _constraints(part: dict[str, Any]) -> list[str]:
    bounds = [f"{sign} {part[word]}" for word, sign in CONSTRAINTS.items() if word in part]
    for choice in part.get("anyOf", ()):
        bounds += _constraints(choice)
    return list(dict.fromkeys(bounds))
