"""What runs share in one process if they differ in training alone: rows, their audit, and one copy of the base."""

from __future__ import annotations

from dataclasses import replace

from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import PreparedData, prepare_data
from ftengine.engine.shared_base import SharedBase
from ftengine.errors import RecipeError
from ftengine.run.record import flat

MAY_DIFFER = ("output", "regularize", "strategy", "train")
"""Sections of the recipe in which runs that share may differ."""


class Shared:
    """What `fine_tune` keeps of one run for the next one in this process; each run ends as it does alone.

    With one strategy, rows are read, divided and audited once; another may leave rows less room. The base is read once,
    and its tensors are in memory once, unless a part of it trains. With a new head, which is drawn by `train.seed`, it
    is read once for each seed.
    """

    def __init__(self) -> None:
        self._data: PreparedData | None = None
        self._base = SharedBase()

    def prepare(self, experiment: Experiment) -> PreparedData:
        """Prepare a run's data, with the rows of the last run (RecipeError: more differs than training)."""
        last, like = self._data, None
        if last is not None:
            _require_alike(last.experiment, experiment)
            like = last if last.experiment.make_strategy.described == experiment.make_strategy.described else None
        self._data = prepare_data(replace(experiment, shared_base=self._base), like=like)
        return self._data


def _require_alike(first: Experiment, other: Experiment) -> None:
    """Raise RecipeError, naming the keys, if recipes differ in more than training."""
    mine, theirs = (
        flat({section: value for section, value in each.resolved().items() if section not in MAY_DIFFER})
        for each in (first, other)
    )
    if keys := sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)):
        raise RecipeError(
            f"a run shares rows and base with one whose {', '.join(keys)} differ{'s' if len(keys) == 1 else ''}. They "
            f"may differ in {', '.join(MAY_DIFFER)}; train the others in a process of their own."
        )
