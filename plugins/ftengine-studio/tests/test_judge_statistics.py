"""Figures of judgements equal those of scipy, statsmodels, scikit-learn and published examples, and hold the truth."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from ftengine_studio.judgements import Judgement, hash_of, now
from ftengine_studio.powered import powered_rate
from ftengine_studio.statistics import (
    agreement,
    by_slice,
    interval_of,
    length,
    length_controlled,
    scores_by_prompt,
    win_rate,
)

VERDICTS = {"tuned": "left", "base": "right"}


def judged(prompt, preferred, judge="Ann", lengths=(10, 10), swapped=False):
    """A judgement: "tuned", "base", "tie", "both-bad" or "skip"; `lengths` are those of tuned and base."""
    sides = ("base", "tuned") if swapped else ("tuned", "base")
    verdict = VERDICTS.get(preferred, preferred)
    if swapped:
        verdict, lengths = {"left": "right", "right": "left"}.get(verdict, verdict), lengths[::-1]
    return Judgement(prompt, hash_of(str(prompt)), *sides, verdict, judge, "person", now(), 0, *lengths)


def many(judge="Ann", start=0, **counts):
    verdicts = [verdict.replace("_", "-") for verdict, count in counts.items() for _ in range(count)]
    return [judged(start + i, verdict, judge, swapped=i % 2 == 1) for i, verdict in enumerate(verdicts)]


def test_ties_count_as_halves_and_skipped_prompts_not_at_all():
    rate = win_rate(many(tuned=12, base=5, tie=2, both_bad=1, skip=7), "tuned")
    assert (rate.value, rate.prompts, rate.judgements, rate.ties, rate.both_bad) == (13.5 / 20, 20, 20, 0.1, 0.05)
    assert (rate.wins, rate.losses, rate.p) == (12, 5, stats.binomtest(12, 17).pvalue)
    other = win_rate(many(tuned=12, base=5, tie=2, both_bad=1), "base")
    assert (1 - other.value, 1 - other.high) == pytest.approx((rate.value, rate.low))
    assert win_rate(many(skip=3), "tuned") is None


def test_the_interval_is_wilsons_for_what_prompts_vary():
    """Of 1 and 0 alone it is nearly the plain one; ties make it narrower."""
    rate = win_rate(many(tuned=130, base=70), "tuned")
    assert (rate.low, rate.high) == pytest.approx(proportion_confint(130, 200, method="wilson"), abs=1e-3)
    tied = win_rate(many(tuned=60, tie=140), "tuned")
    assert tied.high - tied.low < 0.6 * (rate.high - rate.low)
    sure = win_rate(many(tuned=40), "tuned")
    assert 0.9 < sure.low < 0.95
    assert sure.high == 1


def test_prompts_judged_by_several_count_once():
    alone = win_rate(many(tuned=14, base=6), "tuned")
    several = [one for judge in ("Ann", "Ben", "Cem") for one in many(judge, tuned=14, base=6)]
    rate = win_rate(several, "tuned")
    assert (rate.judgements, rate.judges, rate.prompts) == (60, 3, 20)
    assert (rate.low, rate.high, rate.p) == (alone.low, alone.high, alone.p)
    assert scores_by_prompt([judged(3, "tuned"), judged(3, "base", "Ben")], "tuned") == {3: 0.5}


@pytest.mark.parametrize(("win", "tie"), [(0.5, 0.0), (0.8, 0.1), (0.35, 0.6), (0.95, 0.0)])
def test_the_interval_holds_the_truth(win, tie):
    rng, truth = np.random.default_rng(0), win * (1 - tie) + tie / 2
    sets = rng.choice([1.0, 0.0, 0.5], (400, 30), p=[win * (1 - tie), (1 - win) * (1 - tie), tie])
    assert np.mean([low <= truth <= high for low, high in map(interval_of, sets)]) >= 0.91


def test_how_many_more_would_settle_it():
    rate = win_rate(many(tuned=12, base=8), "tuned")
    scores = [1.0] * 12 + [0.0] * 8
    weights = [1.0] * 20 + [0.5, 0.5, 1.0]
    mean = np.average([*scores, 1, 0, 0.5], weights=weights)
    deviation = np.sqrt(np.average((np.array([*scores, 1, 0, 0.5]) - mean) ** 2, weights=weights))
    wanted = TTestPower().solve_power(0.1 / deviation, alpha=0.05, power=0.8)
    assert rate.needed == int(np.ceil(wanted)) - 20 == pytest.approx(170, abs=10)
    assert win_rate(many(tuned=30, base=5), "tuned").needed == 0
    assert win_rate(many(tuned=10, base=10), "tuned").needed is None
    assert not rate.is_settled
    assert win_rate(many(tuned=30, base=5), "tuned").is_settled


def test_alpha_is_that_of_krippendorffs_example():
    """Four observers, twelve units, missing values (Krippendorff 2011, §C); the last three of its values are one here.

    Expected: krippendorff 0.9.0, which is not used for its licence.
    """
    rows = {"A": "123321412   ", "B": "1233224125 3", "C": " 33322412511", "D": "123324412 1 "}
    names = {"1": "tuned", "2": "base"}
    some = [
        judged(i, names.get(value, "tie"), judge)
        for judge, row in rows.items()
        for i, value in enumerate(row)
        if value != " "
    ]
    assert agreement(some, "tuned").alpha == pytest.approx(0.7338173018753782, abs=1e-12)


def test_kappa_is_scikit_learns():
    rng = np.random.default_rng(1)
    says = {judge: rng.choice(["tuned", "base", "tie"], 30, p=[0.6, 0.3, 0.1]) for judge in ("Ann", "Ben")}
    some = [judged(i, verdict, judge) for judge, said in says.items() for i, verdict in enumerate(said)]
    found = agreement([*some, judged(99, "tuned")], "tuned")
    assert found.kappas == {("Ann", "Ben"): pytest.approx(cohen_kappa_score(says["Ann"], says["Ben"]))}
    assert (found.prompts, found.same) == (30, np.mean(says["Ann"] == says["Ben"]))
    assert agreement(many(tuned=5), "tuned") is None
    neither = agreement([judged(0, "tie"), judged(0, "both-bad", "Ben")], "tuned")
    assert neither.same == 1.0  # neither is better, they agree
    same = agreement([*many(tuned=5), *many("Ben", tuned=5)], "tuned")
    assert (same.alpha, same.same) == (None, 1.0)


def test_is_longer_what_wins():
    """A judge who always prefers the longer answer, whichever side it is."""
    rng = np.random.default_rng(0)
    lengths = [(int(a), int(b)) for a, b in rng.integers(10, 500, (60, 2)) if a != b]
    some = [judged(i, "tuned" if a > b else "base", lengths=(a, b), swapped=i % 2) for i, (a, b) in enumerate(lengths)]
    found = length(some, "tuned")
    assert (found.longer_wins, found.shorter_wins, found.decides) == (len(lengths), 0, True)
    assert found.p == stats.binomtest(len(lengths), len(lengths)).pvalue
    assert found.preferred == np.mean([max(pair) for pair in lengths])
    assert found.controlled is None  # no finite coefficient
    equal = length(many(tuned=10, base=5), "tuned")
    assert (equal.longer_wins, equal.p, equal.controlled) == (0, None, None)


def test_length_controlled_rate_is_alpacaevals():
    """The tuned model is longer by much, and preferred for nothing else: raw 70 % and more, controlled a half."""
    rng = np.random.default_rng(0)
    longer = rng.normal(80, 100, 3000)
    scores = (rng.random(3000) < 1 / (1 + np.exp(-1.5 * np.tanh(longer / longer.std(ddof=1))))).astype(float)
    assert scores.mean() > 0.6
    value, low, high = length_controlled(scores, longer)
    assert low <= 0.5 <= high < 0.55
    design = np.column_stack([np.ones(3000), np.tanh(longer / longer.std(ddof=1))])
    plain = sm.Logit(scores, design).fit(disp=0)
    assert value == pytest.approx(1 / (1 + np.exp(-plain.params[0])), abs=1e-6)
    ends = 1 / (1 + np.exp(-plain.conf_int()[0]))
    assert (low, high) == pytest.approx(tuple(ends), abs=2e-3)


def test_slices_are_adjusted_together():
    some = many(tuned=12, base=0) + many(start=12, tuned=5, base=7) + many(start=24, tuned=2)
    topic = {i: "law" if i < 12 else "care" if i < 24 else "few" for i in range(26)}
    found = by_slice(some, "tuned", {"topic": topic})["topic"]
    assert found.keys() == {"law", "care"}
    rate, p = found["law"]
    assert (rate.value, rate.prompts, p) == (1.0, 12, pytest.approx(2 * stats.binomtest(12, 12).pvalue))


def test_powered_rate_is_that_of_ppi_python():
    """Expected: ppi-python 0.2.3, of the same numbers."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 40) * 1.0
    f = np.where(rng.random(40) < 0.8, y, 1 - y)
    further = rng.choice([0, 0.5, 1], 200, p=[0.2, 0.1, 0.7])
    people, model = dict(enumerate(y)), {**dict(enumerate(f)), **{100 + i: x for i, x in enumerate(further)}}
    found = powered_rate(people, model)
    assert found.value == pytest.approx(0.73507069, abs=1e-8)
    assert (found.people, found.model) == (y.mean(), np.mean([*f, *further]))
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 39) * 0.06340838, rel=0.1)
    assert powered_rate(dict(list(people.items())[:19]), model) is None
    assert powered_rate(people, dict(enumerate(f))) is None


@pytest.mark.parametrize(("truth", "bias", "agrees"), [(0.6, 0.3, 1.0), (0.9, 0.5, 1.0), (0.7, 0.1, 0.6)])
def test_the_powered_rate_holds_the_truth_where_the_model_alone_is_biased(truth, bias, agrees):
    rng, powered, alone, widths = np.random.default_rng(0), 0, 0, []
    for _ in range(100):
        y = (rng.random(330) < truth).astype(float)
        f = np.where(rng.random(330) < bias, 1.0, np.where(rng.random(330) < agrees, y, 0.0))
        found = powered_rate(dict(enumerate(y[:30])), dict(enumerate(f)))
        powered += found.low <= truth <= found.high
        low, high = proportion_confint(f.sum(), len(f), method="wilson")
        alone += low <= truth <= high
        widths.append((found.high - found.low, np.subtract(*proportion_confint(y[:30].sum(), 30, method="wilson"))))
    assert powered / 100 >= 0.92
    assert alone / 100 < 0.7
    if agrees == 1:  # a model that says much of what people say makes the interval narrower
        of_both, of_people = np.mean(widths, axis=0)
        assert of_both < -of_people
