"""Whether an evaluator counts rows by their weights and in any order, as all intervals and tests take it to."""

from __future__ import annotations

import numpy as np

from ftengine.api import Evaluator, Rows
from ftengine.equivalence import differing_figures
from ftengine.errors import PluginError
from ftengine.plugins.attribution import named, without

ASKED = 128
"""Rows at most that are asked, at equal distances."""


def require_weighing(evaluator: Evaluator, rows: Rows, count: int) -> None:
    """Refuse an evaluator that reads the order of rows, or to which a weight of 2 is not the row twice (PluginError).

    It is asked of some of the rows three times more than for its figures; what it raises there, these tell.

    Args:
        rows: columns of so many rows, as `Evaluator.score` takes them.
    """
    chosen = np.arange(count)[:: -(-count // ASKED) or 1]
    if len(chosen) < 2:
        return
    draw = np.random.default_rng(0)
    order, doubled = draw.permutation(len(chosen)), np.arange(len(chosen)) % 2 == 0
    some = {name: column[chosen] for name, column in rows.items()}
    twice = {name: np.concatenate([column, column[doubled]]) for name, column in some.items()}
    try:
        with np.errstate(all="ignore"):
            plain = evaluator.score(some, np.ones(len(chosen)))
            shuffled = evaluator.score({name: x[order] for name, x in some.items()}, np.ones(len(chosen)))
            weighed = evaluator.score(some, 1.0 + doubled)
            repeated = evaluator.score(twice, np.ones(len(chosen) + int(doubled.sum())))
        faults = {
            "of the same rows in another order": differing_figures(plain, shuffled),
            "where every other row has a weight of 2, and where it is twice there,": differing_figures(
                weighed, repeated
            ),
        }
    except Exception:  # where it fails on the rows themselves, or gives no figures, these tell of it
        return
    for what, differing in faults.items():
        if differing:
            raise PluginError(
                f"{named(evaluator)}: score() gives {differing} {what} and these must be equal: intervals, tests and "
                f"slices weigh rows. Use the weights that it is given, for each row alone.{without(evaluator)}"
            )
