"""Loss and perplexity per token."""

import math

import numpy as np
import pytest

from ftengine_builtins.evaluators.language import Perplexity


def scored_texts(scored, loss, tokens):
    return scored(Perplexity(), [{"loss": float(x), "tokens": int(k)} for x, k in zip(loss, tokens, strict=True)])


def test_loss_is_the_mean_over_tokens_and_not_over_examples(scored):
    loss, tokens = np.array([2.0, 30.0, 4.0]), np.array([1, 10, 3])
    found = scored_texts(scored, loss, tokens)
    assert found.scores == {"loss": pytest.approx(36 / 14), "perplexity": pytest.approx(math.exp(36 / 14))}
    for rows, values in found.resamples(10):
        mean = loss[rows].sum() / tokens[rows].sum() if len(rows) else math.nan
        assert values["loss"] == pytest.approx(mean, nan_ok=True)


def test_texts_weigh_as_many_tokens_as_they_have(scored):
    found = scored_texts(scored, [1, 2], [500, 10])
    for weights in found.evaluator.example_weights(found.rows).values():
        assert weights.tolist() == [500, 10]


def test_without_tokens_there_is_no_loss(scored):
    found = scored_texts(scored, [0.0, 6.0], [0, 3])
    assert found.evaluator.score_examples(found.rows).score == pytest.approx([math.nan, -2], nan_ok=True)
    assert math.isnan(scored_texts(scored, [0.0] * 10, [0] * 10).scores["perplexity"])
