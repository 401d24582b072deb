"""Philox4x32-7 and the mask made of it, against published vectors and a scalar implementation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftengine.ops import reference
from ftengine.ops.dropout import dropout_level, quantise_dropout
from ftengine.ops.philox import keep_mask, philox4x32

# Random123 1.14.0, tests/kat_vectors, the lines "philox4x32 7": counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


def as_seed(k0, k1):
    unsigned = k0 | k1 << 32
    return torch.tensor(unsigned - (1 << 64) if unsigned >> 63 else unsigned)


def scalar_philox(counter, key):
    """Philox4x32-7 in Python's integers, as the paper writes it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(7):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def scalar_keep(seed, n, row, column):
    """The specification at the head of philox.py, an element at a time."""
    seed %= 1 << 64
    w = scalar_philox((row, column // 8, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
    j = column % 8
    half_word = w[j // 2] >> (16 * (j % 2)) & 0xFFFF
    signed = half_word - 65536 if half_word >= 32768 else half_word
    return signed >= n - 32768


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, result):
    lanes = [torch.tensor([word]) for word in words(counter)]
    block = philox4x32(*lanes, as_seed(*words(key)))
    assert [w & 0xFFFFFFFF for w in block[0].tolist()] == words(result)
    assert list(scalar_philox(words(counter), words(key))) == words(result)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    n=st.integers(1, 65535),
    first_row=st.integers(0, 2**32 - 4),
    columns=st.integers(1, 20),
)
def test_mask_follows_its_specification(seed, n, first_row, columns):
    mask = keep_mask(torch.tensor(seed), n, first_row, 3, columns)
    expected = [[scalar_keep(seed, n, first_row + i, j) for j in range(columns)] for i in range(3)]
    assert mask.bool().tolist() == expected
    assert set(mask.unique().tolist()) <= {-1, 0}


@pytest.mark.parametrize("chunk", [1, 100, 1000, 1 << 20])
def test_operators_apply_one_mask_however_they_divide_the_rows(monkeypatch, chunk):
    seed, p, k = torch.tensor(7), quantise_dropout(0.3), 37
    mask = keep_mask(seed, dropout_level(p), 0, 29, k).bool()
    monkeypatch.setattr(reference, "CHUNK_ON_CPU", chunk)
    x, identity, dx = torch.ones(29, k), torch.eye(k), torch.zeros(29, k)
    s = reference.lowrank_shrink(x, identity, p, seed)
    assert torch.equal(s != 0, mask)
    da = reference.lowrank_backward_input_(dx, x, x, identity, p, seed)
    assert torch.equal(dx, s)
    torch.testing.assert_close(da[0], mask.sum(0) / (1 - p))


@pytest.mark.parametrize("p", [1 / 65536, 0.05, 0.5, 0.9, 65535 / 65536])
def test_keep_rate_lies_within_the_exact_binomial_bound(p):
    rows, columns, n = 1000, 250, dropout_level(p)
    kept = int(keep_mask(torch.tensor(2026), n, 0, rows, columns).bool().sum())
    # Hoeffding's bound: beyond it lies less than 1e-9, on both sides, for any p.
    bound = math.sqrt(math.log(2 / 1e-9) / (2 * rows * columns))
    assert abs(kept / (rows * columns) - (1 - n / 65536)) <= bound
