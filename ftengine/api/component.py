"""The base class of all components, of their options and of their traits."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


def usual(low: float, high: float, per: str = "") -> dict[str, Any]:
    """Return a numeric option's `json_schema_extra`: the range outside of which a value is probably a mistake.

    `plan` warns of values outside, and the verdict names them where the model is no better for its training.

    Args:
        low, high: ends of the range, which belong to it; generous, as it is for mistakes and not for advice.
        per: another option of the component; the range is of this value divided by that one.
    """
    return {"usual": [low, high], **({"per": per} if per else {})}


class Config(BaseModel):
    """Options of a component. Unknown keys are errors; the field's description is its help text."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Traits:
    """Plain facts about a component, by kind; where they depend on options, `__init__` sets `self.traits`.

    Args:
        is_default: `ftengine init` proposes it; for optimizers and schedules, the one that `auto` uses.
    """

    is_default: bool = False


class Component(ABC):
    """Anything that a user can choose by name in a recipe.

    Subclasses set `name`, may replace `Config`, and start their docstring with the line that `ftengine plugins list`
    shows. A component is built with its validated config. The abstract methods of its kind must be overridden; the
    others are optional, and by default do nothing or return None or False.
    """

    name: ClassVar[str]
    """What recipes write."""
    Config: ClassVar[type[BaseModel]] = Config
    """The options: pydantic fields with descriptions, none of them called "name"."""
    traits: Traits = Traits()
    """Plain facts about the component."""
    paper: ClassVar[str] = ""
    """The paper that the method is from; shown by `ftengine plugins show`."""

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def check_options(self) -> None:  # noqa: B027  # empty on purpose, as all optional methods are
        """Raise InputError where an option names something (a file, a model, a package) that is missing or unusable.

        Called before anything is loaded.
        """


def overrides(component: Component | type[Component], name: str) -> bool:
    """Return whether a component, or its class, overrides an optional method of its kind, such as "merge"."""
    cls = component if isinstance(component, type) else type(component)
    owners = [kind for kind in cls.__mro__ if name in vars(kind)]
    # A class of the contract that brings a member declares it; one that has it from another writes it.
    return bool(owners) and not (is_contract(owners[0]) and not any(name in vars(x) for x in owners[0].__mro__[1:]))


def is_contract(cls: type) -> bool:
    """Return whether a class is one of the base classes in `ftengine.api`."""
    return cls.__module__.startswith(f"{__package__}.")
