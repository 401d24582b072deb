"""The search space: ranges and choices of the recipe's keys."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import annotated_types
import yaml

from ftengine import Recipe
from ftengine.errors import InputError, load_yaml, naming

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

SECTIONS = ("train.", "strategy.")
"""Keys that may differ between trials; other ones would change the data, the model, or how it is measured."""

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\s*\.\.\s*({NUMBER})\s*(:\s*log)?")

RANKS = ("rank", "r")
"""What strategies call the rank of an update."""
DROPOUTS = ("dropout", "lora_dropout")


@dataclass(frozen=True)
class Dimension:
    """A key of the recipe with its range or choices.

    Args:
        low, high: ends of a range, both included; if both are int, only integers are tried.
        log: whether values are sampled on a logarithmic scale.
        choices: the values, if it is not a range.
    """

    key: str
    low: float | int = 0
    high: float | int = 0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the range holds whole numbers alone."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def shortened(self, value: float) -> float:
        """Return a number with four digits, so that what is shown, written and trained is one number."""
        return value if self.choices else min(max(float(f"{value:.4g}"), self.low), self.high)

    def holds(self, value: Any) -> bool:
        """Return whether a value is in the range or among the choices."""
        if self.choices:
            return value in self.choices
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.whole or float(value).is_integer())

    def ends(self) -> Sequence[Any]:
        """Return the extreme values, with which the recipe is checked."""
        return self.choices or (self.low, self.high)

    def __str__(self) -> str:
        if self.choices:
            return f"{self.key} = {', '.join(json.dumps(choice) for choice in self.choices)}"
        return f"{self.key} = {self.low:g} to {self.high:g}{', by factors' if self.log else ''}"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def parse(key: str, text: Any, where: str) -> Dimension:
    """Read a range ("1e-5..1e-3:log", "1..8") or choices ("4,8,16", or a list).

    Raises:
        InputError: it is neither, the range is empty, or the key must not differ between trials; `where` begins the
            message.
    """
    if not key.startswith(SECTIONS):
        raise InputError(
            f"{where}: {key!r} cannot be searched. Keys of train and strategy can, such as train.learning_rate or "
            "strategy.rank."
        )
    match = RANGE.fullmatch(str(text).strip()) if not isinstance(text, list) else None
    if match is None:
        try:
            choices = text if isinstance(text, list) else load_yaml(f"[{text}]")
        except yaml.YAMLError:
            choices = []
        if len(choices) < 2 or ".." in str(text):
            raise InputError(
                f"{where}: {text!r} is neither a range nor a choice. Write LOW..HIGH (1..8), LOW..HIGH:log "
                "(1e-5..1e-3:log), or values with commas between (4,8,16)."
            )
        return Dimension(key, choices=tuple(choices))
    low, high = (int(end) if re.fullmatch(r"[+-]?\d+", end) else float(end) for end in match.groups()[:2])
    log = match[3] is not None
    if low >= high:
        raise InputError(f"{where}: {text!r} is empty: its low end is not below its high end.")
    if log and low <= 0:
        raise InputError(f"{where}: {text!r} has a low end of {low:g}, and :log needs one above 0.")
    return Dimension(key, low, high, log)


def read_space(path: Path) -> list[Dimension]:
    """Read a YAML file of keys with ranges or choices (InputError: it has another form)."""
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--search {str(path)!r} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or not content:
        raise InputError(f"--search {str(path)!r}: write a mapping of keys to ranges, as train.learning_rate: 1..2.")
    return [parse(str(key), value, f"{path}: {key}") for key, value in content.items()]


def default_space(recipe: Recipe, strategy: type[BaseModel]) -> list[Dimension]:
    """Return the default search space: the learning rate, and rank and dropout of the strategy.

    The learning rate goes from a tenth of the recipe's to ten times as much, the rank from a quarter to four times,
    dropout from 0 to 0.2, as far as the options' own bounds allow.
    """
    rate = recipe.train.learning_rate
    dimensions = [Dimension("train.learning_rate", float(f"{rate / 10:.4g}"), float(f"{rate * 10:.4g}"), log=True)]
    for name, field in strategy.model_fields.items():
        value = recipe.strategy.get(name, field.default)
        if name in RANKS and isinstance(value, int):
            low, high = _within(field, max(value // 4, 1), value * 4)
            dimensions += [Dimension(f"strategy.{name}", int(low), int(high), log=True)] if low < high else []
        elif name in DROPOUTS and isinstance(value, (int, float)):
            low, high = _within(field, 0.0, 0.2)
            dimensions += [Dimension(f"strategy.{name}", float(low), float(high))] if low < high else []
    return dimensions


def _within(field: FieldInfo, low: float, high: float) -> tuple[float, float]:
    """Return a range as far as an option's bounds allow."""
    for bound in field.metadata:
        if isinstance(bound, annotated_types.Ge):
            low = max(low, float(bound.ge))  # type: ignore[arg-type]
        elif isinstance(bound, annotated_types.Gt):
            low = max(low, math.nextafter(float(bound.gt), math.inf))  # type: ignore[arg-type]
        elif isinstance(bound, annotated_types.Le):
            high = min(high, float(bound.le))  # type: ignore[arg-type]
        elif isinstance(bound, annotated_types.Lt):
            high = min(high, math.nextafter(float(bound.lt), -math.inf))  # type: ignore[arg-type]
    return low, high


def check_space(recipe: Recipe, space: Sequence[Dimension], registry: Any) -> None:
    """Refuse keys that the recipe does not have, and values that it does not allow (InputError)."""
    keys = set()
    for dimension in space:
        if dimension.key in keys:
            raise InputError(f"{dimension.key!r} is searched twice. Leave one of the two ranges.")
        keys.add(dimension.key)
        for value in dimension.ends():
            with naming(f"search of {dimension.key}"):
                changed = with_values(recipe, {dimension.key: value})
                _check_components(changed, registry)


def _check_components(recipe: Recipe, registry: Any) -> None:
    """Refuse options of components that ranges can reach (InputError)."""
    named = [("strategy", recipe.strategy, "strategy")]
    named += [(kind, getattr(recipe.train, kind), f"train.{kind}") for kind in ("optimizer", "schedule")]
    for kind, spec, key in named:
        if spec["name"] != "auto":
            registry.factory(kind, spec, key)


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with other values of some keys (RecipeError: a value is not allowed)."""
    content = recipe.resolved()
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return Recipe.make(content, overrides)


def own_values(recipe: Recipe, space: Sequence[Dimension], registry: Any) -> dict[str, Any] | None:
    """Return the recipe's own values of the searched keys; None if one is outside of the search space."""
    content = recipe.resolved()
    content["strategy"] = registry.factory("strategy", recipe.strategy, "strategy").described
    values = {}
    for dimension in space:
        section, *inner = dimension.key.split(".")
        value = content[section]
        for name in inner:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, dict) and value.keys() == {"name"}:  # a component without options
            value = value["name"]
        if not dimension.holds(value):
            return None
        values[dimension.key] = value
    return values


def shown(value: Any) -> str:
    """Return a short text of a value: numbers with at most six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)
