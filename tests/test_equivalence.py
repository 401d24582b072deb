"""Distances against their formulas, and one place for what may differ by how much."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

import docs_contract
import pytest
import torch

from ftengine import equivalence
from ftengine.equivalence import (
    FLOOR,
    REORDERED,
    block_distances,
    differing,
    distance,
    row_distances,
    same_figure,
)

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"ftengine/identity/base.py", "ftengine/evaluation/examples.py"}
"""What is compared there is no model: a setting that a format stores as float32, and a share as a metric's value."""

A = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
B = A + torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def test_a_distance_is_relative_to_the_norm():
    expected = float((A - B).double().norm() / B.double().norm())
    assert distance(A, B) == pytest.approx(expected)
    assert distance(A.numpy(), B.numpy()) == pytest.approx(expected)
    assert distance(2 * A, 2 * B) == pytest.approx(expected)
    assert distance(A, B, size=2.0) == pytest.approx(float((A - B).double().norm()) / 2)


def test_outputs_around_a_mean_have_the_size_of_their_spread():
    a, b = torch.tensor([2000.0, 2010.0]), torch.tensor([2000.0, 1990.0])
    assert distance(a, b, mean=0.0) < 0.01
    assert distance(a, b, mean=2000.0) == pytest.approx(20 / (2000 * math.sqrt(2) / 16))  # but no less than float32 has


@pytest.mark.parametrize("order", [2.0, math.inf])
def test_rows_have_distances_of_their_own(order):
    b = B.clone()
    b[1] = A[1]
    found = row_distances(A, b, order)
    size = partial(torch.linalg.vector_norm, ord=order)
    assert found.tolist() == pytest.approx([float(size(A[i] - b[i]) / size(b[i])) for i in range(4)], rel=1e-6)
    assert found[1] == 0


def test_a_gradient_that_is_zero_but_for_rounding_has_the_size_of_the_largest():
    own = {"loss": torch.tensor(100.0), "weight": torch.full((4,), 0.5), "bias": torch.tensor([1e-9])}
    other = {"loss": torch.tensor(100.0), "weight": torch.full((4,), 0.5), "bias": torch.tensor([2e-9])}
    assert block_distances(other, own, "loss") == {"loss": 0, "weight": 0, "bias": pytest.approx(1e-9 / FLOOR)}


def test_figures_are_the_same_but_for_the_order_of_their_sums():
    assert same_figure(2.0, 2.0 * (1 + REORDERED / 2))
    assert not same_figure(2.0, 2.0 * (1 + 2 * REORDERED))
    assert same_figure(math.nan, math.nan)
    assert not same_figure(math.nan, 1.0)
    assert same_figure(math.inf, math.inf)


def test_tensors_differ_to_the_bit():
    before = {"a": A, "b": B, "hash": "x", "gone": A}
    after = {"a": A.clone(), "b": torch.nextafter(B, B + 1), "hash": "y", "new": A}
    assert differing(before, after) == ["b", "hash", "gone"]


def test_every_tolerance_is_used_and_no_other_comparison_has_its_own():
    sources = {
        str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
        for file in (*ROOT.glob("ftengine/**/*.py"), *ROOT.glob("plugins/ftengine*/ftengine*/**/*.py"))
        if "equivalence" not in file.parts
    }
    sources |= {str(f.relative_to(ROOT)): f.read_text() for f in ROOT.glob("plugins/ftengine_builtins/**/*.py")}
    own = (ROOT / "ftengine/equivalence/__init__.py").read_text(encoding="utf-8").partition("\ndef ")[2]
    words = set(re.findall(r"\w+", " ".join([own, *sources.values()])))
    assert docs_contract.assigned(equivalence).keys() <= words
    assert {name for name, text in sources.items() if re.search(r"\b(allclose|isclose)\(", text)} == ELSEWHERE
