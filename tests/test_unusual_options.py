"""Options far outside of the range that their field declares (`api.usual`)."""

from types import SimpleNamespace

import pytest
from installed import registry_with
from partly import partly
from pydantic import Field

from ftengine import Recipe, api
from ftengine.api import Strategy, usual
from ftengine.engine.plan_warnings import far_from_usual, is_untrained
from ftengine.plugins.registry import Registry
from ftengine.run.unusual import unusual_options
from ftengine.testing.models import tiny_resnet


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


@pytest.mark.parametrize(("rate", "trained", "warned"), [(2e-3, False, 0), (2e-3, True, 1), (0.3, False, 1)])
def test_a_learning_rate_is_usual_for_a_model_that_never_was_trained(rate, trained, warned):
    model = tiny_resnet()[0]
    if trained:
        next(of for name, of in model.named_parameters() if of.ndim == 1 and "weight" in name).data.add_(0.01)
    recipe = Recipe.make({"model": {"source": "m"}, "task": "image-classification", "data": {"train": "a"},
                          "output": "o", "strategy": "full", "train": {"learning_rate": rate}})  # fmt: skip
    experiment, schedule = SimpleNamespace(recipe=recipe, registry=Registry()), SimpleNamespace(warmup=1, total=10)
    assert len([*far_from_usual(experiment, schedule, untrained=is_untrained(model))]) == warned
