"""Samplers propose the values of trials."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ftengine.errors import InputError
from ftengine_tune.space import Dimension

Earlier = Sequence[tuple[dict[str, Any], float | None]]
"""Values of earlier trials with their losses after the first rung; None for one that failed."""
Sampler = Callable[[Sequence[Dimension], Earlier, int], dict[str, Any]]
"""Proposes the values of the next trial from the space, the earlier trials, and a seed of its own."""


def random(space: Sequence[Dimension], earlier: Earlier, seed: int) -> dict[str, Any]:
    """Draw each value uniformly, on the scale of its dimension."""
    rng = np.random.default_rng(seed)
    return {dimension.key: _drawn(dimension, rng) for dimension in space}


def _drawn(dimension: Dimension, rng: np.random.Generator) -> Any:
    if dimension.choices:
        return dimension.choices[int(rng.integers(len(dimension.choices)))]
    low, high = (dimension.low - 0.5, dimension.high + 0.5) if dimension.whole else (dimension.low, dimension.high)
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if dimension.log else rng.uniform(low, high)
    if dimension.whole:
        return int(min(max(round(value), dimension.low), dimension.high))
    return dimension.shortened(value)


def tpe(space: Sequence[Dimension], earlier: Earlier, seed: int) -> dict[str, Any]:
    """Propose values by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011); the first ten are random."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise InputError(
            "--sampler tpe needs the Python module 'optuna', which is not installed. Install it (pip install "
            "'ftengine-tune[tpe]'), or use --sampler random."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    distributions = {dimension.key: _distribution(dimension, optuna.distributions) for dimension in space}
    for values, loss in earlier:
        params = {one.key: json.dumps(values[one.key]) if one.choices else values[one.key] for one in space}
        state = optuna.trial.TrialState.FAIL if loss is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=loss, state=state))
    params = study.ask(distributions).params
    proposed = {}
    for dimension in space:
        value = params[dimension.key]
        if dimension.choices:
            value = json.loads(value)
        proposed[dimension.key] = dimension.shortened(value) if isinstance(value, float) else value
    return proposed


def _distribution(dimension: Dimension, of: Any) -> Any:
    if dimension.choices:
        return of.CategoricalDistribution([json.dumps(choice) for choice in dimension.choices])
    kind = of.IntDistribution if dimension.whole else of.FloatDistribution
    return kind(dimension.low, dimension.high, log=dimension.log)


SAMPLERS: dict[str, Sampler] = {"random": random, "tpe": tpe}

ATTEMPTS = 100
"""Draws after which a space is taken to hold no further values."""


def new_values(
    sampler: str, space: Sequence[Dimension], earlier: Earlier, seed: Sequence[int]
) -> dict[str, Any] | None:
    """Propose values that no earlier trial has; None if the space seems to hold no others."""
    for attempt in range(ATTEMPTS):
        drawn = int(np.random.SeedSequence((*seed, attempt)).generate_state(1)[0])
        values = SAMPLERS[sampler](space, earlier, drawn)
        if all(values != before for before, _ in earlier):
            return values
    return None
