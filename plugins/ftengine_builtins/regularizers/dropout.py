"""A new dropout probability for the whole model."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ftengine import api
from ftengine.api import LoadedModel, Regularizer, RegularizerTraits, Task, usual
from ftengine.errors import RecipeError
from ftengine_builtins.regularizers.randomness import Place, config_dropouts, dropouts


class Dropout(Regularizer):
    """Set the dropout probability of the whole model, attention's included (Srivastava et al. 2014).

    Many models come with dropout 0, or with too little for a small data set. Dropout of modules that the strategy added
    (lora, adapter) stays as it is, unless `strategy` is true. 0 switches dropout off.
    """

    name = "dropout"
    traits = RegularizerTraits(supports_sharding=True)
    paper = "Srivastava et al. 2014, Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 15"

    class Config(api.Config):
        p: float = Field(
            0.1,
            ge=0,
            lt=1,
            description="probability that an activation is dropped while training",
            json_schema_extra=usual(0, 0.5),
        )
        strategy: bool = Field(
            False, description="also change the dropout of modules that the strategy added (lora, adapter)"
        )

    _before: Sequence[tuple[Place, float]] = ()

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        places = self._selected(dropouts(loaded))
        if not places:
            raise RecipeError(
                f"regularizer dropout finds no dropout in {type(loaded.module).__name__} to set. Use that of the "
                "strategy (strategy.dropout), or another regularizer, such as mixout or l2-sp."
            )
        places += self._selected(config_dropouts(loaded))
        self._before = [(place, place.probability) for place in places]
        for place in places:
            setattr(place.owner, place.attribute, self.config.p)

    def detach(self, loaded: LoadedModel) -> None:
        for place, probability in self._before:
            setattr(place.owner, place.attribute, probability)
        self._before = ()

    def _selected(self, places: Sequence[Place]) -> list[Place]:
        return [place for place in places if self.config.strategy or not place.added]
