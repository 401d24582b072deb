"""Learning rates to try next: so near the strategy's usual one that advice on them ends."""

from ftengine import RunRecords

STEP = 10
"""How many times another rate is lower or higher; where the usual one is further away, it is that."""


def usual_rate(run: RunRecords) -> float | None:
    """Return the usual learning rate of a run's strategy; None of one that is not in the box, or states none."""
    from ftengine_builtins import strategies

    every = (getattr(strategies, name) for name in strategies.__all__)
    rates = {one.name: one.traits.learning_rate for one in every if hasattr(one, "traits")}
    return rates.get(run.recipe.strategy["name"])


def is_far_above_usual(run: RunRecords) -> bool:
    """Say whether the rate is more than STEP times the strategy's usual one."""
    usual = usual_rate(run)
    return usual is not None and run.recipe.train.learning_rate > STEP * usual


def lower_rate(run: RunRecords) -> float:
    """Return the rate to try where one is too high."""
    rate, usual = run.recipe.train.learning_rate, usual_rate(run)
    return usual if usual and is_far_above_usual(run) else rate / STEP


def raised_rate(run: RunRecords) -> float:
    """Return the rate to try where one is too low."""
    rate, usual = run.recipe.train.learning_rate, usual_rate(run)
    return usual if usual and rate < usual / STEP else STEP * rate
