"""Options of generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from ftengine.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11


class GenerationOptions(BaseModel):
    """How answers are generated."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token; above, tokens are sampled")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens that hold this probability")
    seed: int | None = Field(
        None,
        ge=0,
        description="random seed of sampling; equal prompts get equal draws; null draws differently every time",
    )
    sample: NonNegativeInt | list[NonNegativeInt] | None = Field(
        None,
        description="number of the answer, from 0, if several are drawn for a prompt, or of each row's answer; null "
        "for a single answer",
    )

    def numbers(self, answers: int) -> list[int]:
        """Return the numbers of `answers` answers: `sample`, else 0 for each."""
        return self.sample if isinstance(self.sample, list) else [self.sample or 0] * answers

    @classmethod
    def read(cls, options: Mapping[str, Any] | None) -> Self:
        """Validate options. Raises InputError, which names the option, its value and what is allowed."""
        try:
            return cls.model_validate(dict(options or {}))
        except ValidationError as error:
            problem = error.errors()[0]
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            names = list(cls.model_fields)
            raise InputError(f"unknown option {name!r}. Allowed: {', '.join(names)}." + did_you_mean(name, names))
        raise InputError(f"option {name!r}: {problem['msg']} (got {problem['input']!r}).")


def sampling(options: Mapping[str, Any], samples: int, seed: int) -> dict[str, Any]:
    """Return the options for drawing several answers to a row.

    Raises:
        InputError: all answers would be equal.
    """
    drawn = {"temperature": 1.0, "seed": seed, **options}
    if samples > 1 and not drawn["temperature"]:
        raise InputError(f"{samples} answers of temperature 0 would be equal. Set it above 0.")
    return drawn
