"""Options of a recipe that are far from usual, by what each field declares (`ftengine.api.usual`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ftengine.errors import UnknownName
from ftengine.plugins.class_validation import AUTO
from ftengine.plugins.registry import Entry, Registry
from ftengine.run.recipe import Recipe, usual_learning_rate

if TYPE_CHECKING:
    from typing import TypeGuard

FASTER, SLOWER = 50, 1000
"""How many times the learning rate that `init` proposes, and what part of it, is far from usual."""


@dataclass(frozen=True)
class UnusualOption:
    """A number of a recipe outside its usual range.

    Args:
        key: of the recipe, such as "task.temperature".
        per: another key that the number is divided by; "" for the number itself.
        value, low, high: the number, divided where `per` is set, and the ends of the usual range.
        default: what it is unless set; None where that depends.
    """

    key: str
    value: float
    low: float
    high: float
    default: float | None = None
    per: str = ""

    def __str__(self) -> str:
        name = f"{self.key} / {self.per.rpartition('.')[2]}" if self.per else self.key
        return f"{name} is {self.value:g}; {self.usual}"

    @property
    def usual(self) -> str:
        """The usual range, and the default, in words."""
        default = "" if self.default is None else f", {self.default:g} by default"
        return f"{self.low:g} to {self.high:g} are usual{default}"


def unusual_options(recipe: Recipe, registry: Registry) -> Iterator[UnusualOption]:
    """Yield the options outside their usual range, of the task first; of components that are installed."""
    components = [("task", "task", recipe.task), ("strategy", "strategy", recipe.strategy)]
    components += [("regularizer", f"regularize.{i}", spec) for i, spec in enumerate(recipe.regularize)]
    components += [("optimizer", "train.optimizer", recipe.train.optimizer)]
    for kind, key, spec in components:
        if spec["name"] != AUTO and (entry := _entry(registry, kind, spec["name"])) is not None:
            yield from _outside(key, entry.cls.Config, spec)
    yield from _outside("train", type(recipe.train), dict(recipe.train))
    rate, proposed = recipe.train.learning_rate, _proposed_rate(recipe, registry)
    if proposed is not None and not proposed / SLOWER <= rate <= proposed * FASTER:
        yield UnusualOption("train.learning_rate", rate, proposed / 10, proposed * 10, proposed)


def _entry(registry: Registry, kind: str, name: str) -> Entry | None:
    try:
        return registry.get(kind, name)
    except UnknownName:
        return None


def _outside(key: str, config: type[BaseModel], values: Mapping[str, Any]) -> Iterator[UnusualOption]:
    """Yield the numbers outside the range that their field declares; options that are not given have their default."""
    for name, field in config.model_fields.items():
        declared: Any = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        value, per = values.get(name), declared.get("per", "")
        divided_by = values.get(per, config.model_fields[per].default) if per else 1
        if "usual" not in declared or not _is_number(value) or not _is_number(divided_by) or not divided_by:
            continue
        low, high = declared["usual"]
        default = None if per or not isinstance(field.default, (int, float)) else float(field.default)
        if not low <= value / divided_by <= high:
            other = f"{key}.{per}" if per else ""
            yield UnusualOption(f"{key}.{name}", value / divided_by, low, high, default, other)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _proposed_rate(recipe: Recipe, registry: Registry) -> float | None:
    """Return the learning rate that `init` proposes for a recipe's strategy and task; None for unknown ones."""
    strategy, task = (_entry(registry, kind, getattr(recipe, kind)["name"]) for kind in ("strategy", "task"))
    if strategy is None or task is None or (rate := strategy.cls.traits.learning_rate) is None:  # type: ignore[attr-defined]
        return None
    return usual_learning_rate(rate, task.cls.traits.learning_rate_share)  # type: ignore[attr-defined]
