"""Options far outside of the range that their field declares (`api.usual`)."""

import pytest
from installed import registry_with
from partly import partly
from pydantic import Field

from ftengine import Recipe, api
from ftengine.api import Strategy, usual
from ftengine.run.unusual import unusual_options


@partly
class Scaled(Strategy):
    """A strategy whose factor is usual by its size, which may be none."""

    name = "scaled"

    class Config(api.Config):
        size: int | None = None
        factor: float = Field(1.0, json_schema_extra=usual(0.1, 10, per="size"))


@pytest.mark.parametrize(
    ("strategy", "named"),
    [
        ({"name": "lora", "rank": 8, "alpha": 0.01}, ["strategy.alpha"]),
        ({"name": "lora", "rank": 512, "alpha": 32}, []),  # one alpha for all ranks
        ({"name": "lora", "rank": 256, "alpha": 16, "rslora": True}, []),
        ({"name": "scaled", "size": 2, "factor": 40.0}, ["strategy.factor"]),
        ({"name": "scaled", "size": None, "factor": 40.0}, []),
        ({"name": "scaled", "size": 0, "factor": 40.0}, []),
    ],
)
def test_a_factor_is_unusual_by_what_it_is_divided_by(strategy, named):
    recipe = Recipe.make(
        {
            "model": {"source": "m"},
            "task": {"name": "causal-lm"},
            "data": {"train": "a.jsonl"},
            "output": "o",
            "strategy": strategy,
            "train": {"learning_rate": 1e-4},
        }
    )
    found = [option.key for option in unusual_options(recipe, registry_with(Scaled))]
    assert [key for key in found if key.startswith("strategy")] == named
