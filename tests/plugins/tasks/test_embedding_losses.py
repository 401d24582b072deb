"""Losses of embeddings against their papers' formulas, written out in NumPy."""

import numpy as np
import pytest
import torch

from ftengine_builtins.tasks.embedding_losses import (
    CoSENT,
    CosineRegression,
    InBatchNegatives,
    Matryoshka,
    SameLabel,
    TripletMargin,
)

N, D = 6, 8


def made(*names, seed=0, **beside):
    draw = np.random.default_rng(seed)
    found = {name: draw.normal(size=(N, D)) for name in names}
    ids = {f"{name}_id": np.arange(N) + 100 * place for place, name in enumerate(names)}
    return {name: torch.tensor(x) for name, x in {**found, **ids, **beside}.items()}


def cosines(a, b):
    a, b = (np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


def value(loss, x):
    total, weight = loss(x)
    return float(total), float(weight)


def in_batch(s, keep):
    """Σ_i -log(exp(s_ii) / Σ_j exp(s_ij)) over kept j, and i itself."""
    s = np.exp(s)
    return sum(-np.log(s[i, i] / (s[i, keep[i]].sum())) for i in range(len(s)))


@pytest.mark.parametrize("symmetric", [False, True])
def test_in_batch_negatives_are_those_of_other_rows(symmetric):
    x = made("anchor", "positive")
    s, every = cosines(x["anchor"], x["positive"]) / 0.1, np.ones((N, N), dtype=bool)
    wanted = in_batch(s, every)
    if symmetric:
        wanted = (wanted + in_batch(s.T, every)) / 2
    assert value(InBatchNegatives(0.1, symmetric), x) == pytest.approx((wanted, N), rel=1e-12)


def test_negatives_of_triplets_are_candidates_of_every_row():
    x = made("anchor", "positive", "negative")
    s = cosines(x["anchor"], torch.cat([x["positive"], x["negative"]])) / 0.05
    assert value(InBatchNegatives(), x)[0] == pytest.approx(in_batch(s, np.ones((N, 2 * N), dtype=bool)), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "masked"),
    [
        ({"positive_id": [100, 100, 102, 103, 104, 105]}, [(0, 1), (1, 0)]),  # the same document twice
        ({"anchor_id": [0, 1, 2, 2, 4, 5]}, [(2, 3), (3, 2)]),  # the same query with two documents
        ({"positive_id": [100, 0, 102, 103, 104, 105]}, [(0, 1)]),  # a document that is another row's query
        ({"label_id": [7, 8, 7, 9, 10, 11]}, [(0, 2), (2, 0)]),
    ],
)
def test_false_negatives_are_left_out(change, masked):
    x = made("anchor", "positive") | {name: torch.tensor(ids) for name, ids in change.items()}
    keep = np.ones((N, N), dtype=bool)
    for place in masked:
        keep[place] = False
    s = cosines(x["anchor"], x["positive"]) / 0.05
    assert value(InBatchNegatives(), x)[0] == pytest.approx(in_batch(s, keep), rel=1e-12)


def test_texts_of_a_label_are_separated_from_those_of_other_labels():
    labels = [1, 1, 1, 2, 2, 3]
    x = made("anchor", label_id=np.array(labels))
    s, wanted = np.exp(cosines(x["anchor"], x["anchor"]) / 0.2), []
    for i in range(N):
        others = sum(s[i, k] for k in range(N) if labels[k] != labels[i])
        own = [-np.log(s[i, p] / (s[i, p] + others)) for p in range(N) if p != i and labels[p] == labels[i]]
        wanted += [np.mean(own)] if own else []
    assert value(SameLabel(0.2), x) == pytest.approx((sum(wanted), 5), rel=1e-12)


def test_a_batch_of_one_label_has_no_loss_and_a_gradient_of_numbers():
    x = made("anchor", label_id=np.zeros(N, dtype=int))
    x["anchor"].requires_grad_()
    total, _ = SameLabel()(x)
    total.backward()
    assert total.item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(x["anchor"].grad).all()


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_triplets_have_a_margin(distance):
    x = made("anchor", "positive", "negative")
    a, p, n = (np.asarray(x[name]) for name in ("anchor", "positive", "negative"))
    far = {
        "euclidean": lambda u, v: np.linalg.norm(u - v, axis=1),
        "cosine": lambda u, v: 1 - np.diag(cosines(u, v)),
    }[distance]
    wanted = np.maximum(0, far(a, p) - far(a, n) + 0.5).sum()
    assert wanted > 0
    assert value(TripletMargin(0.5, distance), x) == pytest.approx((wanted, N), rel=1e-6)  # torch adds 1e-6 within


def test_cosines_are_fitted_to_scores():
    scores = np.linspace(-1, 1, N)
    x = made("anchor", "positive", score=scores)
    wanted = ((np.diag(cosines(x["anchor"], x["positive"])) - scores) ** 2).sum()
    assert value(CosineRegression(), x) == pytest.approx((wanted, N), rel=1e-9)


def test_cosent_orders_pairs_as_scores_do():
    scores = np.array([0.1, 0.5, 0.5, 0.9, 0.3, 0.1])
    x = made("anchor", "positive", score=scores)
    cos = np.diag(cosines(x["anchor"], x["positive"])) * 20
    over = [np.exp(cos[j] - cos[i]) for i in range(N) for j in range(N) if scores[i] > scores[j]]
    assert value(CoSENT(), x) == pytest.approx((N * np.log1p(sum(over)), N), rel=1e-9)


def test_matryoshka_adds_losses_of_cut_vectors():
    x, loss = made("anchor", "positive"), InBatchNegatives()
    cut = {name: v[:, :3] if name in ("anchor", "positive") else v for name, v in x.items()}
    wanted = 2 * float(loss(x)[0]) + 0.5 * float(loss(cut)[0])
    assert value(Matryoshka(loss, [D, 3], [2, 0.5]), x) == pytest.approx((wanted, N), rel=1e-12)
