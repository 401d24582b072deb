"""Evaluators and augmenters that tests of what is measured install."""

import threading

import numpy as np
from installed import registry_with

from ftengine.api import ExampleScores, FittedEvaluator, Metric, TextAugmenter
from ftengine.errors import DataError
from ftengine.plugins.registry import Registry


class Even(FittedEvaluator):
    """Share of tokens whose number is even: judges, and fits."""

    name = "even"
    reads = frozenset({"tokens"})
    metrics = {"even": Metric("even", higher_is_better=True)}  # noqa: RUF012
    seen = None

    def fit(self, rows):
        self.seen = 0 if rows is None else len(rows["tokens"])

    def score_examples(self, rows):
        even = (rows["tokens"] % 2 == 0).astype(float)
        return ExampleScores(even, even)

    def score(self, rows, weights):
        return {next(iter(self.metrics)): np.average(rows["tokens"] % 2 == 0, weights=weights)}

    def details(self, rows, estimate):
        yield "seen", self.seen


class Shout(TextAugmenter):
    """Write user turns in capitals."""

    name = "shout"

    def change(self, text, rng):
        return text.upper()


class Graded(Even):
    """Reads a column that has to hold numbers; holds a lock, which cannot be copied."""

    name = "graded"
    metrics = {"graded": Metric("graded", higher_is_better=True)}  # noqa: RUF012
    columns = frozenset({"grade"})

    def __init__(self, config=None):
        super().__init__(config)
        self.lock = threading.Lock()

    def check_row(self, row):
        if not isinstance(row["grade"], int):
            raise DataError(f"`grade` is {row['grade']!r}; a number is needed.")


class Longer(TextAugmenter):
    """Say it four times."""

    name = "longer"

    def change(self, text, rng):
        return " ".join([text] * 4)


def with_plugin() -> Registry:
    """Return all components that are installed, and these."""
    return registry_with(Even, Graded, Shout, Longer, distribution="test-plugin")
