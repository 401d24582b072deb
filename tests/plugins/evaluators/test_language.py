"""Loss and perplexity per token."""

import math

import numpy as np
import pytest

from ftengine.api import EvaluationContext
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import compare
from ftengine_builtins.evaluators.language import Perplexity


def accumulate(loss, tokens):
    accumulator = Accumulator([Perplexity()], EvaluationContext("causal-lm"), predicts=Perplexity.reads)
    for index, (nats, count) in enumerate(zip(loss, tokens, strict=True)):
        accumulator.update(index, {"loss": float(nats), "tokens": int(count)})
    return accumulator


def test_loss_is_the_mean_over_tokens_and_not_over_examples():
    results = accumulate([2.0, 30.0], [1, 10]).results()
    assert results["loss"].value == pytest.approx(32 / 11)
    assert results["perplexity"].value == pytest.approx(math.exp(32 / 11))


def test_perplexity_has_the_interval_of_the_loss():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50, 80)
    results = accumulate(tokens * rng.normal(2, 0.3, 80), tokens).results()
    loss, perplexity = results["loss"], results["perplexity"]
    assert loss.low < loss.value < loss.high
    assert (perplexity.low, perplexity.high) == pytest.approx((math.exp(loss.low), math.exp(loss.high)))


def test_less_loss_is_better():
    tokens = np.arange(1, 41)
    difference = compare(accumulate(tokens * 2.0, tokens), accumulate(tokens * 1.9, tokens))
    assert difference["loss"].value == pytest.approx(-0.1)
    assert difference["loss"].better is difference["perplexity"].better is True


def test_without_tokens_there_is_no_loss():
    results = accumulate([0.0] * 10, [0] * 10).results()
    assert math.isnan(results["loss"].value)
    assert results["perplexity"].low is None


def test_unequal_lengths_are_worth_fewer_examples():
    """A text of half of all tokens is half of the figure, however many others there are."""
    loss = np.random.default_rng(0).normal(2, 0.3, 51)
    equal, unequal = np.full(51, 10), np.array([500] + [10] * 50)
    size = {kind: accumulate(loss * tokens, tokens).figures()["loss"].size for kind, tokens in
            (("equal", equal), ("unequal", unequal))}  # fmt: skip
    assert size["equal"] == 51
    assert size["unequal"] == pytest.approx(1000**2 / (500**2 + 50 * 10**2))
    assert accumulate(loss * unequal, unequal).results()["loss"].low is None  # four examples' worth
