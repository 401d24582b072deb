"""The registry of components by kind and name; duplicates and unknown names are errors with suggestions."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from ftengine import api
from ftengine.errors import PluginError, RecipeError, SourceError, UnknownName, did_you_mean
from ftengine.plugins.class_validation import AUTO, classes, described, fault, written
from ftengine.plugins.discovery import PluginOrigin, Plugins, make_plugin_manager
from ftengine.plugins.distributions import BLOCK_VARIABLE, BUILT_IN, repair_hint
from ftengine.plugins.option_errors import explain

KINDS: dict[str, tuple[type[api.Component], str]] = {
    "loader": (api.ModelLoader, "ftengine_model_loaders"),
    "reader": (api.Reader, "ftengine_readers"),
    "task": (api.Task, "ftengine_tasks"),
    "strategy": (api.Strategy, "ftengine_strategies"),
    "augmenter": (api.Augmenter, "ftengine_augmenters"),
    "regularizer": (api.Regularizer, "ftengine_regularizers"),
    "fast-path": (api.FastPath, "ftengine_fast_paths"),
    "optimizer": (api.Optimizer, "ftengine_optimizers"),
    "schedule": (api.Schedule, "ftengine_schedules"),
    "evaluator": (api.Evaluator, "ftengine_evaluators"),
    "audit": (api.Audit, "ftengine_audits"),
    "rule": (api.Rule, "ftengine_rules"),
    "callback": (api.Callback, "ftengine_callbacks"),
    "exporter": (api.Exporter, "ftengine_exporters"),
}
"""Component kinds: the base class of each and the hook that lists its classes."""

RECIPE_KEYS = {
    "loader": "model.loader",
    "reader": "data.reader",
    "task": "task",
    "strategy": "strategy",
    "augmenter": "augment",
    "regularizer": "regularize",
    "fast-path": "train.fast_paths",
    "optimizer": "train.optimizer",
    "schedule": "train.schedule",
    "evaluator": "evaluate",
    "callback": "callbacks",
}
"""Recipe keys of the kinds that a recipe names. Audits and rules are not named: all installed ones are used."""


@dataclass(frozen=True)
class Entry:
    """A registered component class and where it comes from."""

    kind: str
    cls: type[Any]
    origin: PluginOrigin

    @property
    def name(self) -> str:
        return self.cls.name

    @property
    def docstring(self) -> str:
        """The class's own docstring, unindented."""
        return inspect.getdoc(self.cls) or ""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.docstring.partition("\n")[0]

    @property
    def needs_options(self) -> bool:
        """Whether it has a required option."""
        try:
            self.cls.Config.model_validate({})
        except ValidationError:
            return True
        return False


@dataclass(frozen=True)
class Factory:
    """Builds a new object of a component on each call.

    Args:
        entry: the component's class and origin.
        config: its validated options.
    """

    entry: Entry
    config: BaseModel

    @property
    def described(self) -> dict[str, Any]:
        """The component in the form of a recipe, with all options."""
        return {"name": self.entry.name, **self.config.model_dump(mode="json")}

    def __call__(self) -> Any:
        """Build the component (PluginError: its `__init__` does not call that of its base)."""
        built = self.entry.cls(self.config)
        if not hasattr(built, "config"):
            raise PluginError(
                f"{self.entry.kind} {self.entry.name!r} of {self.entry.origin} has no `config` after its __init__: "
                "call super().__init__(config) there."
            )
        return built


class Registry:
    """The components of all loaded plugins, or those of the kinds in `only`."""

    def __init__(self, plugins: Plugins | None = None, only: Collection[str] = KINDS) -> None:
        self.plugins = plugins if plugins is not None else make_plugin_manager()
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        for kind in only:
            base, hook_name = KINDS[kind]
            for impl in getattr(self.plugins.hook, hook_name).get_hookimpls():
                origin = self.plugins.origin(impl.plugin_name)
                offered, wrong = classes(impl.function)
                if wrong:
                    raise PluginError(f"{hook_name} of {origin} {wrong}. {repair_hint(origin.distribution)}")
                for cls in offered:
                    self._add(kind, base, cls, origin)

    def _add(self, kind: str, base: type[api.Component], cls: Any, origin: PluginOrigin) -> None:
        wrong = fault(cls, base)
        if not wrong and kind not in RECIPE_KEYS and Entry(kind, cls, origin).needs_options:
            wrong = f"it has an option without a default, but recipes cannot set options of {article(kind)} {kind}"
        if wrong:
            what = f"{origin} offers {described(cls)} as {article(kind)} {kind}"
            raise PluginError(f"{what}, but {wrong}. {repair_hint(origin.distribution)}")
        name = cls.name
        present = self._entries[kind].get(name)
        if present is not None:
            both = f"{_class(present.cls)} of {present.origin}, and {_class(cls)} of {origin}"
            other = present.origin if origin.distribution == BUILT_IN else origin
            repair = f"Uninstall one, or block one with {BLOCK_VARIABLE}={other.distribution}."
            if present.origin.distribution == origin.distribution:
                repair = f"Give one of them another `name`. {repair_hint(origin.distribution)}"
            raise PluginError(f"two {kind} plugins are named {name!r}: {both}. {repair}")
        self._entries[kind][name] = Entry(kind, cls, origin)

    def entries(self, kind: str) -> list[Entry]:
        """Return all components of a kind, by name."""
        return sorted(self._entries[kind].values(), key=lambda entry: entry.name)

    def get(self, kind: str, name: str, key: str = "") -> Entry:
        """Find a component.

        Args:
            kind: one of `KINDS`.
            name: the component's name.
            key: the recipe key or command option ("--task") that names it, for the message.

        Raises:
            UnknownName: no such component; lists the installed ones and the nearest name.
        """
        entry = self._entries[kind].get(name)
        if entry is None:
            origin = f"option {key.removesuffix('.name')}" if key.startswith("--") else f"recipe key {key}"
            where = f" ({origin})" if key else ""
            hint = self._elsewhere(name) or f"{self._suggestion(kind, name)}{self.blocked()}"
            raise UnknownName(f"no {kind} named {name!r}{where}.{hint}")
        return entry

    def blocked(self) -> str:
        """Return a sentence, after a blank, on the distributions that the user blocks; "" if there are none."""
        names = {origin.distribution for origin in self.plugins.origins.values() if origin.status == "blocked"}
        return f" Blocked by {BLOCK_VARIABLE}: {', '.join(sorted(names))}." if names else ""

    def _elsewhere(self, name: str) -> str:
        """Return the recipe keys for components of other kinds with this name; "" if there are none."""
        kinds = [kind for kind in RECIPE_KEYS if name in self._entries[kind]]
        kinds_of_name = " or ".join(f"{article(kind)} {kind}" for kind in kinds)
        return (
            f" {name!r} is {kinds_of_name}: put it under {' or '.join(RECIPE_KEYS[kind] for kind in kinds)}."
            if kinds
            else ""
        )

    def _suggestion(self, kind: str, name: str) -> str:
        """Return which component of a kind may be meant, and the installed ones."""
        entries = self.entries(kind)
        if kind == "evaluator" and (hint := self._metrics_named(name)):
            return hint
        # Users may know the library's name of a head better than the task's name.
        headed = [e.name for e in entries if issubclass(e.cls, api.Task) and e.cls.head == name]
        near = did_you_mean(name, self._entries[kind])
        if headed:
            near = f" Did you mean {' or '.join(map(repr, headed))}?"
        return f"{near} Installed: {self.installed(kind)}."

    def installed(self, kind: str) -> str:
        """Return the names of a kind, with the distribution of those that are not ftengine's."""
        entries = self.entries(kind)
        shown = (e.name if e.origin.distribution == BUILT_IN else f"{e.name} ({e.origin})" for e in entries)
        return ", ".join(shown) or "none"

    def _metrics_named(self, name: str) -> str:
        """Return which evaluators report a metric of this name, or one that contains it as a word; "" if none does."""
        metric_name, descriptions = name.lower().replace("-", "_"), []
        for entry in self.entries("evaluator"):
            declared = entry.cls.metrics if issubclass(entry.cls, api.Evaluator) else {}
            metrics = [metric for metric in declared if metric_name in (metric, *metric.split("_"))]
            if metrics:
                tasks = [task.name for task in self.entries("task") if entry.name in _own_evaluators(task)]
                runs = f", which runs of {' and '.join(tasks)} use by default" if tasks else ""
                descriptions.append(f"{' and '.join(map(repr, metrics))} of evaluator {entry.name!r}{runs}")
        return f" It is a metric, not an evaluator: {'; '.join(descriptions)}." if descriptions else ""

    def factory(self, kind: str, spec: str | Mapping[str, Any], key: str) -> Factory:
        """Validate a component, written as a name or as a mapping with `name` and options.

        Raises:
            UnknownName: no such component.
            RecipeError: an option is unknown or out of range; the message names the recipe key.
        """
        options = {} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "name"}
        name = spec if isinstance(spec, str) else spec["name"]
        entry = self.get(kind, name, f"{key}.name" if not isinstance(spec, str) else key)
        try:
            config = entry.cls.Config.model_validate(options)
        except ValidationError as error:
            raise RecipeError(explain(error, entry.cls.Config, f"{key}.", f" of {kind} {name!r}")) from None
        return Factory(entry, config)

    def build(self, kind: str, spec: str | Mapping[str, Any], key: str) -> Any:
        """Build one component; see `factory`."""
        return self.factory(kind, spec, key)()

    def usual(self, kind: str, spec: Mapping[str, Any], key: str) -> Factory:
        """Like `factory`, but "auto" is the kind's default (`Traits.is_default`), ftengine's own first.

        Raises:
            UnknownName, RecipeError: as `factory`.
        """
        if spec["name"] == AUTO:
            starting = [e for e in self.entries(kind) if e.cls.traits.is_default]
            starting.sort(key=lambda entry: entry.origin.distribution != BUILT_IN)
            spec = {**spec, "name": starting[0].name} if starting else spec
        return self.factory(kind, spec, key)

    def loader_of(
        self, source: str, spec: Mapping[str, Any], key: str = "model.loader", *, leave_out: tuple[type, ...] = ()
    ) -> api.ModelLoader:
        """Build the named loader, or for "auto" the first by name that accepts the source.

        Args:
            source: `model.source` of a recipe.
            spec: the loader in the form of a recipe; options of "auto" are passed to the chosen loader.
            key: the recipe's key, for messages.
            leave_out: classes that "auto" must not choose.

        Raises:
            UnknownName, RecipeError: no loader has that name, or it does not take these options.
            SourceError: no loader accepts the source.
        """
        if spec["name"] != AUTO:
            return self.build("loader", spec, key)
        names = [entry.name for entry in self.buildable("loader") if not issubclass(entry.cls, leave_out)]
        for name in names:
            if self.build("loader", name, key).accepts(source):
                return self.build("loader", {**spec, "name": name}, key)
        hint = "" if os.path.exists(source) else " No file or folder has this path."
        raise SourceError(
            f"no loader accepts model.source {source!r} (installed: {', '.join(names)}).{hint} Give a folder with "
            "config.json, a .gguf file, a hub id, package://NAME/FILE, timm://NAME or torchvision://NAME; name "
            f"{key} for anything else."
        )

    def buildable(self, kind: str) -> list[Entry]:
        """Return the components of a kind, by name, that can be built without options."""
        return [entry for entry in self.entries(kind) if not entry.needs_options]

    def build_all(self, kind: str) -> list[Any]:
        """Build every component of a kind, by name, with its default options."""
        return [entry.cls() for entry in self.entries(kind)]


def article(word: str) -> str:
    """Return "a" or "an" for a word."""
    return "an" if word[0] in "aeiou" else "a"


def registry_of(plugins: Mapping[str, object] | None = None) -> Registry:
    """Return the installed plugins and further ones (modules or objects by name), for notebooks and tests."""
    return Registry(make_plugin_manager(dict(plugins or {})))


def _class(cls: type) -> str:
    """Return a class's name with its file and line."""
    place = written(cls)
    return f"{cls.__qualname__}{place and f' ({place})'}"


def _own_evaluators(task: Entry) -> tuple[str, ...]:
    """Return the evaluators of a task with default options; empty if it has required options."""
    return () if task.needs_options else task.cls().evaluators  # type: ignore[attr-defined]


def to_choose_from(error: ValidationError) -> str:
    """Return the installed components for missing keys of a recipe; "" if no such key is missing."""
    missing = {item["loc"][0] for item in error.errors() if item["type"] == "missing" and len(item["loc"]) == 1}
    kinds = [kind for kind, key in RECIPE_KEYS.items() if key in missing]
    try:
        registry = Registry(only=kinds) if kinds else None
    except PluginError:  # what needs the plugin reports that it is broken
        return ""
    return "".join(f" Installed for {RECIPE_KEYS[kind]}: {registry.installed(kind)}." for kind in kinds if registry)
