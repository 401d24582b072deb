"""What every component has."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Options of a component. Unknown keys are errors; the field's description is its help text."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class Component:
    """Anything with a name that a user can choose in a recipe.

    Subclasses set `name`, may replace `Config`, and start their docstring with the line that
    `ftengine plugins list` shows. A component is built with its validated config.
    """

    name: ClassVar[str]
    Config: ClassVar[type[BaseModel]] = Config

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()
