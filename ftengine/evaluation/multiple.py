"""Several comparisons at once: p-values that keep the chance of any false finding at the level asked for."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
    The chance that any true null hypothesis has an adjusted p at or below α is at most α, however the tests
    depend on one another.

    Args:
        p_values: one a comparison.

    Returns:
        The adjusted p-values in the same order, each at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
