"""Holm's correction, against its definition and against chance."""

import itertools

import numpy as np
import pytest

from ftengine.evaluation.multiple import holm


def test_holms_own_steps():
    # 4·0.005, 3·0.01, 2·0.03 and 0.04, which may not fall below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_one_comparison_needs_no_correction_and_none_gives_none():
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_no_p_exceeds_one():
    assert holm([0.9, 0.8, 0.7]) == [1.0, 1.0, 1.0]


def test_order_does_not_matter():
    values = [0.01, 0.02, 0.5]
    expected = dict(zip(values, holm(values), strict=True))
    for order in itertools.permutations(values):
        assert holm(order) == [expected[value] for value in order]


def test_false_findings_stay_at_the_level():
    # Six comparisons without any difference: without correction 26 % of such families have a finding at 0.05.
    draws = np.random.default_rng(0).random((4000, 6))
    found = np.mean([min(holm(list(row))) <= 0.05 for row in draws])
    assert found == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 4000))
    assert np.mean(draws.min(axis=1) <= 0.05) > 0.2
