"""Learning rates to try next, which approach the strategy's usual one."""

from ftengine import RunRecords

STEP = 10
"""Factor between a rate and the next one to try; if the usual rate is further away, that is next."""


def usual_rate(run: RunRecords) -> float | None:
    """Return the usual learning rate of a run's strategy; None if it is not ftengine's or declares none."""
    from ftengine_builtins import strategies

    every = (getattr(strategies, name) for name in strategies.__all__)
    rates = {strategy.name: strategy.traits.learning_rate for strategy in every if hasattr(strategy, "traits")}
    return rates.get(run.recipe.strategy["name"])


def is_far_above_usual(run: RunRecords) -> bool:
    """Return whether the rate is more than STEP times the strategy's usual one."""
    usual = usual_rate(run)
    return usual is not None and run.recipe.train.learning_rate > STEP * usual


def lower_rate(run: RunRecords) -> float:
    """Return the rate to try if the run's is too high."""
    rate, usual = run.recipe.train.learning_rate, usual_rate(run)
    return usual if usual and is_far_above_usual(run) else rate / STEP


def raised_rate(run: RunRecords) -> float:
    """Return the rate to try if the run's is too low."""
    rate, usual = run.recipe.train.learning_rate, usual_rate(run)
    return usual if usual and rate < usual / STEP else STEP * rate
