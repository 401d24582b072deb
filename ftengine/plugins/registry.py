"""kind + name -> class. Duplicates and unknown names are errors with suggestions."""

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
from ftengine.plugins.distributions import BLOCK_VARIABLE, BUILT_IN, instead
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
"""Where a recipe names components of a kind; audits and rules are not named, all that are installed are used."""


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
        """Whether it has an option that must be given."""
        try:
            self.cls.Config.model_validate({})
        except ValidationError:
            return True
        return False


@dataclass(frozen=True)
class Factory:
    """Builds one component as often as it is called, each time afresh.

    Args:
        entry: the component's class and origin.
        config: its validated options.
    """

    entry: Entry
    config: BaseModel

    @property
    def described(self) -> dict[str, Any]:
        """The component as a recipe writes it, with every option."""
        return {"name": self.entry.name, **self.config.model_dump(mode="json")}

    def __call__(self) -> Any:
        """Build the component (PluginError: its own `__init__` leaves out the base class's)."""
        built = self.entry.cls(self.config)
        if not hasattr(built, "config"):
            raise PluginError(
                f"{self.entry.kind} {self.entry.name!r} of {self.entry.origin} has no options once it is built: call "
                "super().__init__(config) in its __init__."
            )
        return built


class Registry:
    """All components of all loaded plugins, or those of some kinds."""

    def __init__(self, plugins: Plugins | None = None, only: Collection[str] = KINDS) -> None:
        self.plugins = plugins if plugins is not None else make_plugin_manager()
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        for kind in only:
            base, hook_name = KINDS[kind]
            for impl in getattr(self.plugins.hook, hook_name).get_hookimpls():
                origin = self.plugins.origin(impl.plugin_name)
                offered, wrong = classes(impl.function)
                if wrong:
                    raise PluginError(f"{hook_name} of {origin} {wrong}. {instead(origin.distribution)}")
                for cls in offered:
                    self._add(kind, base, cls, origin)

    def _add(self, kind: str, base: type[api.Component], cls: Any, origin: PluginOrigin) -> None:
        wrong = fault(cls, base)
        if not wrong and kind not in RECIPE_KEYS and Entry(kind, cls, origin).needs_options:
            wrong = f"it has an option without a default, and recipes give {article(kind)} {kind} none"
        if wrong:
            what = f"{origin} offers {described(cls)} as {article(kind)} {kind}"
            raise PluginError(f"{what}, but {wrong}. {instead(origin.distribution)}")
        name = cls.name
        known = self._entries[kind].get(name)
        if known is not None:
            both = f"{_class(known.cls)} of {known.origin}, and {_class(cls)} of {origin}"
            other = known.origin if origin.distribution == BUILT_IN else origin
            repair = f"Uninstall one, or block one with {BLOCK_VARIABLE}={other.distribution}."
            if known.origin.distribution == origin.distribution:
                repair = f"Give one of them another `name`. {instead(origin.distribution)}"
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
            key: the recipe key, or the command's option ("--task"), that asked for it, for the message.

        Raises:
            UnknownName: lists what is installed and the nearest name.
        """
        entry = self._entries[kind].get(name)
        if entry is None:
            asked = f"option {key.removesuffix('.name')}" if key.startswith("--") else f"recipe key {key}"
            where = f" ({asked})" if key else ""
            told = self._elsewhere(name) or f"{self._instead(kind, name)}{self.blocked()}"
            raise UnknownName(f"no {kind} named {name!r}{where}.{told}")
        return entry

    def blocked(self) -> str:
        """Say which distributions the user blocks, after a blank; "" where there are none."""
        names = {one.distribution for one in self.plugins.origins.values() if one.status == "blocked"}
        return f" Not loaded, as {BLOCK_VARIABLE} names it: {', '.join(sorted(names))}." if names else ""

    def _elsewhere(self, name: str) -> str:
        """Say of which other kind a component of this name is; "" where there is none that a recipe names."""
        kinds = [kind for kind in RECIPE_KEYS if name in self._entries[kind]]
        said = " or ".join(f"{article(kind)} {kind}" for kind in kinds)
        return f" {name!r} is {said}: put it under {' or '.join(RECIPE_KEYS[kind] for kind in kinds)}." if kinds else ""

    def _instead(self, kind: str, name: str) -> str:
        """Say which component of a kind may be meant, and which there are."""
        entries = self.entries(kind)
        if kind == "evaluator" and (said := self._metrics_named(name)):
            return said
        # A head is called by the library's name, which people know better than the task's.
        headed = [e.name for e in entries if issubclass(e.cls, api.Task) and e.cls.head == name]
        near = did_you_mean(name, self._entries[kind])
        if headed:
            near = f" Did you mean {' or '.join(map(repr, headed))}?"
        return f"{near} Installed: {self.installed(kind)}."

    def installed(self, kind: str) -> str:
        """List the names of a kind, each with its distribution unless it is in the box."""
        entries = self.entries(kind)
        shown = (e.name if e.origin.distribution == BUILT_IN else f"{e.name} ({e.origin})" for e in entries)
        return ", ".join(shown) or "none"

    def _metrics_named(self, name: str) -> str:
        """Say which evaluators report metrics of this name, or of one that it is a part of, and when they do."""
        asked, said = name.lower().replace("-", "_"), []
        for entry in self.entries("evaluator"):
            declared = entry.cls.metrics if issubclass(entry.cls, api.Evaluator) else {}
            metrics = [metric for metric in declared if asked in (metric, *metric.split("_"))]
            if metrics:
                tasks = [task.name for task in self.entries("task") if entry.name in _own_evaluators(task)]
                runs = f", which runs of {' and '.join(tasks)} have without being asked" if tasks else ""
                said.append(f"{' and '.join(map(repr, metrics))} of evaluator {entry.name!r}{runs}")
        return f" It is a metric, not an evaluator: {'; '.join(said)}." if said else ""

    def factory(self, kind: str, spec: str | Mapping[str, Any], key: str) -> Factory:
        """Check a component's name and options, given as a name or as a mapping with `name` and its options.

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
        """Do as `factory` does, where "auto" is the kind's default (`Traits.is_default`), ftengine's own first.

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
        """Build the loader that is named, or the first by name that accepts a source.

        Args:
            source: what is to be loaded.
            spec: the loader as a recipe writes it; options of "auto" go to the one that is found.
            key: the recipe's key, for messages.
            leave_out: classes that "auto" does not stand for.

        Raises:
            UnknownName, RecipeError, SourceError: no loader has that name or takes these options, or none accepts it.
        """
        if spec["name"] != AUTO:
            return self.build("loader", spec, key)
        names = [entry.name for entry in self.buildable("loader") if not issubclass(entry.cls, leave_out)]
        for name in names:
            if self.build("loader", name, key).accepts(source):
                return self.build("loader", {**spec, "name": name}, key)
        hint = "" if os.path.exists(source) else " There is no such file or folder here."
        raise SourceError(
            f"no loader accepts model.source {source!r} (installed: {', '.join(names)}).{hint} Give a folder with "
            "config.json, a .gguf file, a hub id, package://NAME/FILE, timm://NAME or torchvision://NAME; name "
            f"{key} for anything else."
        )

    def buildable(self, kind: str) -> list[Entry]:
        """Return the components of a kind, by name, that need no option: others are only there where they are named."""
        return [entry for entry in self.entries(kind) if not entry.needs_options]

    def build_all(self, kind: str) -> list[Any]:
        """Build every component of a kind, by name, with its default options."""
        return [entry.cls() for entry in self.entries(kind)]


def article(word: str) -> str:
    """Return "a" or "an", as the word wants it."""
    return "an" if word[0] in "aeiou" else "a"


def registry_of(plugins: Mapping[str, object] | None = None) -> Registry:
    """Return what is installed, and plugins given by hand (modules or objects, by name), for notebooks and tests."""
    return Registry(make_plugin_manager(dict(plugins or {})))


def _class(cls: type) -> str:
    """Name a class, and where it is written."""
    place = written(cls)
    return f"{cls.__qualname__}{place and f' ({place})'}"


def _own_evaluators(task: Entry) -> tuple[str, ...]:
    """Return the evaluators of a task with its default options; none where it has options that must be given."""
    return () if task.needs_options else task.cls().evaluators  # type: ignore[attr-defined]


def to_choose_from(error: ValidationError) -> str:
    """Return which components there are for keys of a recipe that are missing; "" where no such key is."""
    missing = {item["loc"][0] for item in error.errors() if item["type"] == "missing" and len(item["loc"]) == 1}
    kinds = [kind for kind, key in RECIPE_KEYS.items() if key in missing]
    try:
        registry = Registry(only=kinds) if kinds else None
    except PluginError:  # a broken plugin is told by what needs it
        return ""
    return "".join(f" Installed for {RECIPE_KEYS[kind]}: {registry.installed(kind)}." for kind in kinds if registry)
