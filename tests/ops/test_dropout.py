"""Probability and seed of dropout."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftengine.ops import draw_seed, quantise_dropout


@given(st.floats(0, 1, exclude_max=True))
def test_probability_moves_by_less_than_one_level(p):
    quantised = quantise_dropout(p)
    assert (quantised * 65536).is_integer()
    assert 0 <= quantised < 1
    assert abs(quantised - p) <= 1 / 65536
    assert quantise_dropout(quantised) == quantised


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0, float("nan")])
def test_impossible_probability_is_refused(p):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        quantise_dropout(p)


def test_seed_follows_torchs_generator():
    state = torch.get_rng_state()
    first, second = draw_seed(), draw_seed()
    torch.set_rng_state(state)
    assert torch.equal(draw_seed(), first)
    assert not torch.equal(first, second)
    assert first.shape == ()
    assert first.dtype == torch.int64
