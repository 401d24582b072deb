"""Evaluation of the base and the tuned model: tables of predictions, metrics, intervals, tests, slices.

The names exported here are public: rules of other distributions use them. Intervals over seeds are imported when they
are first used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftengine import lazy_attributes
from ftengine.evaluation.chance import CHANCE, got_worse, holm, is_beyond_chance, near_end

if TYPE_CHECKING:
    import numpy as np

    from ftengine.evaluation.seed_intervals import (
        SeedFigure,
        difference_of_recipes,
        difference_over_seeds,
        mean_over_seeds,
    )

_HOMES = {
    "ftengine.evaluation.seed_intervals": "SeedFigure difference_of_recipes difference_over_seeds mean_over_seeds"
}
_, __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

__all__ = [
    "CHANCE",
    "SeedFigure",
    "difference_of_recipes",
    "difference_over_seeds",
    "got_worse",
    "holm",
    "is_beyond_chance",
    "mean_over_seeds",
    "near_end",
    "read_predictions",
]


def read_predictions(run: Path, name: str, side: str) -> dict[str, np.ndarray]:
    """Return a run's stored predictions of one model on a set, by column (docs/evaluation.md); {} if there are none.

    Args:
        name: of the set: the held-out split, "training" or "validation".
        side: "base" or "tuned".

    Raises:
        RunError: the file is damaged.
    """
    from ftengine.evaluation.table import FOLDER, Predictions

    path = run / FOLDER / f"{name}-{side}.parquet"
    return dict(Predictions.read(path).columns) if path.is_file() else {}
