"""Measuring base and tuned model: the table of predictions, figures, intervals, tests, slices.

The names here are public for rules of other distributions, which judge differences and errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftengine.evaluation.chance import CHANCE, got_worse, holm, is_beyond_chance, near_end

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CHANCE", "got_worse", "holm", "is_beyond_chance", "near_end", "read_predictions"]


def read_predictions(run: Path, name: str, side: str) -> dict[str, np.ndarray]:
    """Return what a run keeps of a model's predictions of a set, as docs/evaluation.md has it; {} where it has none.

    Args:
        name: of the set: the held-out split, "training" or "validation".
        side: "base" or "tuned".

    Raises:
        RunError: the file is damaged.
    """
    from ftengine.evaluation.table import FOLDER, Predictions

    path = run / FOLDER / f"{name}-{side}.parquet"
    return dict(Predictions.read(path).columns) if path.is_file() else {}
