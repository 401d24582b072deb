"""Scores of an evaluator on predictions, plain and resampled."""

import numpy as np
import pytest

from ftengine.api import Estimate
from ftengine.testing import rows_of


class Scored:
    """An evaluator's figures on some predictions."""

    def __init__(self, evaluator, predictions):
        self.evaluator, self.rows, self.n = evaluator, rows_of(evaluator, predictions), len(predictions)
        self.scores = evaluator.score(self.rows, np.ones(self.n))

    def resamples(self, count=40):
        """Yield (row numbers, repeated as often as they count, and the scores) of random resamples."""
        weights = np.random.default_rng(1).poisson(1, (count, self.n)).astype(np.uint8)
        found = self.evaluator.score_resamples(self.rows, weights)
        for i, row in enumerate(weights):
            yield np.repeat(np.arange(self.n), row), {name: values[i] for name, values in found.items()}

    def details(self):
        """Return facts by name and displays by title; figures have no intervals."""
        found = list(self.evaluator.details(self.rows, self._estimate))
        facts = dict(one for one in found if isinstance(one, tuple))
        return facts, {one.title: one for one in found if not isinstance(one, tuple)}

    def _estimate(self, values, trials=None):
        return [Estimate(float(value), None, None, self.n) for value in values(np.ones((1, self.n)))[0]]


@pytest.fixture
def scored():
    return Scored
