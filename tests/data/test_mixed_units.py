"""Audit `number-targets`: percentages among fractions."""

import json

import numpy as np
import pytest

from ftengine_builtins.audits.mixed_units import find_percents

WORDS = {"awful": 0.2, "dull": 0.35, "fair": 0.5, "fine": 0.65, "superb": 0.85}


def fractions(count=300, seed=0):
    """Return texts of two words among everybody's, and the mean of what these are worth, with noise."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        words = draw.choice(list(WORDS), 2)
        value = float(np.clip(np.mean([WORDS[word] for word in words]) + draw.normal(0, 0.05), 0.01, 1))
        rows.append((f"the {words[0]} film, {words[1]} music {draw.integers(99)} row{i}", round(value, 3)))
    return rows


def percents(rows, share, seed=0):
    draw = np.random.default_rng(seed)
    return [(text, value * 100 if draw.random() < share else value) for text, value in rows]


@pytest.fixture
def found(write, label_task, audit):
    def found(rows, **options):
        lines = "".join(json.dumps({"text": text, "label": value}) + "\n" for text, value in rows)
        findings = audit(label_task, write("a.jsonl", lines), **options).findings
        return [
            one
            for one in findings
            if one.source == "number-targets" and not {"percents", "scaled"}.isdisjoint(one.figures)
        ]

    return found


@pytest.mark.parametrize("share", [0.15, 0.5, 0.85])
def test_percentages_among_fractions_are_named(found, share):
    rows = percents(fractions(), share)
    [finding] = found(rows)
    assert (finding.level, finding.kind) == ("alarm", "labels")
    assert finding.figures["percents"] == sum(value > 1 for _, value in rows)
    assert finding.figures["converted"] > finding.figures["fit"] + 0.2
    numbers = [int(place.rsplit(":", 1)[1]) - 1 for place in finding.places]
    assert all(rows[i][1] > 1 for i in numbers)


def test_numbers_of_one_unit_are_no_finding(found):
    assert not found(fractions())
    assert not found([(text, 100 * value) for text, value in fractions()])


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: 10 ** rng.uniform(-2, 2, 500),  # of all sizes
        lambda rng: rng.exponential(2, 500),
        lambda rng: np.minimum(rng.lognormal(0, 1.5, 500), 100),
        lambda rng: rng.uniform(0, 100, 500),
        lambda rng: rng.choice(np.arange(1, 11) / 2, 500),  # ratings
        lambda rng: np.concatenate([rng.integers(0, 2, 250), rng.uniform(1, 100, 250)]),
        lambda rng: np.where(rng.random(500) < 0.5, rng.random(500), rng.gamma(5, 5, 500).clip(0, 100)),
    ],
)
def test_numbers_that_are_spread_over_sizes_are_no_two_units(draw):
    assert all(find_percents(draw(np.random.default_rng(seed))) is None for seed in range(10))


def rents(count=300, seed=0):
    draw = np.random.default_rng(seed)
    worth = {"attic": 350, "flat": 700, "loft": 1300, "house": 2000}
    kinds = draw.choice(list(worth), count)
    noise = draw.normal(0, 0.1, count)
    return [
        (f"{kind} to let, ad {i * 7919 % 997}", round(worth[kind] * np.exp(x)))
        for i, (kind, x) in enumerate(zip(kinds, noise, strict=True))
    ]


@pytest.mark.parametrize(("spoil", "factor"), [
    (lambda i, value: value / 1000 if value >= 1000 else float(value), 1000),  # 1.250 beside 980
    (lambda i, value: value * 100.0 if i % 3 == 0 else value + 0.5, 100),  # cents beside euros
    (lambda i, value: value + 0.5, None),
    (lambda i, value: value / 1000 + 0.0001, None),
])  # fmt: skip
def test_numbers_of_two_scales_are_named(found, spoil, factor):
    findings = found([(text, spoil(i, value)) for i, (text, value) in enumerate(rents())])
    assert [(one.level, one.figures["factor"]) for one in findings] == ([("alarm", factor)] if factor else [])
