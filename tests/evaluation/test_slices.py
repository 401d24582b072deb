"""Slices against all other examples."""

import numpy as np
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from ftengine.api import Evaluator, ExampleScores, Metric
from ftengine.evaluation import holm
from ftengine.evaluation.slices import Side, slice_reports
from ftengine.evaluation.weights import Weights


class Share(Evaluator):
    """Share of right answers."""

    name = "share"
    metrics = {"share": Metric("share", higher_is_better=True, proportion=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {name: float(weights @ rows["x"] / weights.sum()) for name in self.metrics}

    def score_resamples(self, rows, weights):
        return {name: weights @ rows["x"] / weights.sum(axis=1) for name in self.metrics}


class Mean(Share):
    """Mean error."""

    name = "mean"
    metrics = {"mean": Metric("mean", higher_is_better=False)}  # noqa: RUF012


def reports(
    columns, after, before=None, evaluator=Share, groups=None, resamples=1000, small=30, judged=True, apart=False
):
    """Return the reports of columns whose values are codes, from what base and tuned got (base by default the same).

    With `apart`, the rows of a group are different examples.
    """
    columns, groups = [np.asarray(codes) for codes in columns], np.arange(len(after)) if groups is None else groups
    sides = [np.asarray(after if side is None else side, dtype=float) for side in (before, after)]
    scores = [ExampleScores(side, side) if judged else None for side in sides]
    base, tuned = (Side({"x": side}, score) for side, score in zip(sides, scores, strict=True))
    texts = {str(i): codes.astype(str) for i, codes in enumerate(columns)}
    weights = Weights(groups, 0, resamples, duplicates=np.arange(len(after)) if apart else None)
    found = slice_reports(texts, evaluator(), base, tuned, weights, small)
    return [column.model_dump() for column in found.values()]


def report(codes, after, **options):
    return reports([codes], after, **options)[0]


def drawn(rates, counts, seed=1):
    codes = np.repeat(np.arange(len(counts)), counts)
    return codes, np.random.default_rng(seed).random(len(codes)) < np.array(rates)[codes]


def named(found, value):
    return next(one for one in found["slices"] if one["value"] == value)


def test_a_slice_that_is_served_worse_is_named_with_a_corrected_p():
    codes, right = drawn([0.95, 0.95, 0.6], [200, 200, 100])
    found = report(codes, right)
    worst = named(found, "2")
    assert (found["metric"], found["worst"], found["left_out"], worst["examples"]) == ("share", "2", 0, 100)
    counts = right[codes == 2].sum(), 100, right[codes != 2].sum(), 400
    expected = confint_proportions_2indep(*counts, method="newcomb")
    single = found["base_gap"]  # the same model, and an interval for this slice alone
    assert (single["low"], single["high"]) == pytest.approx(expected, abs=0.01)
    assert worst["gap"]["low"] < single["low"] < single["high"] < worst["gap"]["high"] < 0
    assert worst["gap"]["p_adjusted"] == pytest.approx(3 * worst["gap"]["p"])
    assert worst["gap"]["p_adjusted"] < 1e-6
    assert worst["gap"]["test"] == single["test"] == "newcombe"


def test_slices_of_rows_in_groups_are_judged_by_group():
    """Three of thirty groups of 20 rows are answered wrongly throughout by one model: 60 rows, but three groups."""
    group = np.repeat(np.arange(30), 20)
    kind, before = np.arange(600) % 2, np.ones(600)
    after = np.where(group < 3, 0.0, before)
    alone, together = (
        report(kind, after, before=before, groups=groups, apart=True) for groups in (np.arange(600), group)
    )
    for value in "01":
        one, other = (named(found, value)["difference"]["share"] for found in (alone, together))
        assert one["p"] == pytest.approx(2 * 0.5**30)
        assert other["p"] > 0.05
        assert other["better"] is None
        figure = named(together, value)["tuned"]["share"]
        assert (figure["n"], figure["rows"]) == (30, 300)
    # Half of each group is in either slice: the two figures vary together, which their gap allows for.
    apart = named(together, "0")["tuned"]["share"]
    gap = named(together, "0")["gap"]
    assert gap["high"] - gap["low"] < apart["high"] - apart["low"]
    # With fewer than 20 groups a slice is small, however many rows it has.
    few = report(kind[:380], after[:380], groups=group[:380], apart=True)
    assert [one["small"] for one in few["slices"]] == [True, True]
    # So it is whatever recipes call small of examples, and where groups are worth fewer: one of 100 rows, 20 of five.
    few = report(kind[:380], after[:380], groups=group[:380], apart=True, small=10)
    assert [one["small"] for one in few["slices"]] == [True, True]
    unequal = np.append(np.zeros(100, dtype=int), 1 + np.repeat(np.arange(20), 5))
    few = report(np.zeros(200), np.ones(200), groups=unequal, apart=True)
    assert few["slices"][0]["small"]
    assert few["slices"][0]["tuned"]["share"]["n"] == 21


def test_a_slice_of_nearly_all_examples_is_not_the_worst():
    found = report(*drawn([0.7, 1.0], [1900, 100]))
    assert (found["worst"], found["slices"][0]["value"]) == ("1", "0")
    assert named(found, "1")["gap"]["low"] > 0


def test_p_values_are_adjusted_over_the_slices_of_all_columns():
    """Two columns, of two slices (one question) and of three: four questions in all."""
    codes, right = drawn([0.95, 0.95, 0.6], [200, 200, 100])
    halves = np.arange(500) % 7 > 2
    alone = report(halves, right)["slices"][0]["gap"]
    assert alone["p"] == alone["p_adjusted"]  # one question needs no adjusting
    two, three = reports([halves, codes], right)
    both, shown = ([one["gap"] for one in column["slices"]] for column in (two, three))
    raw = [both[0]["p"], *(gap["p"] for gap in shown)]
    assert [gap["p_adjusted"] for gap in (both[0], *shown)] == pytest.approx(list(holm(dict(enumerate(raw))).values()))
    assert both[1]["p_adjusted"] == both[0]["p_adjusted"]


def test_a_small_slice_is_never_worst_and_rare_values_are_left_out():
    found = report(*drawn([0.9, 0.8, 0.0], [200, 200, 8]))
    assert [one["small"] for one in found["slices"]] == [False, False, True]
    assert found["worst"] == "1"
    assert found["slices"][2]["gap"] is None
    many = report(np.append(np.arange(60), np.arange(50)), np.ones(110), resamples=20)
    assert (len(many["slices"]), many["left_out"]) == (50, 10)


def fallen(wrong, **options):
    """Return the difference of the first of twenty slices of 40, where tuned is wrong on so many and base on none."""
    codes = np.repeat(np.arange(20), 40)
    found = report(codes, np.arange(800) >= wrong, before=np.ones(800), resamples=200, **options)
    return next(iter(named(found, "0")["difference"].values()))


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("wrong", [20, 40])
def test_one_slice_of_twenty_that_falls_stays_beyond_chance_after_adjusting(wrong, judged):
    found = fallen(wrong, judged=judged)
    assert found["better"] is False
    assert found["p_adjusted"] == pytest.approx(20 * found["p"])
    assert found["p_adjusted"] < 1e-3  # the bootstrap alone: at 200 resamples 20 · 2/201


def test_a_metric_without_a_direction_makes_no_slice_worst():
    class Neither(Mean):
        metrics = {"mean": Metric("mean")}  # noqa: RUF012

    found = report(np.repeat([0, 1], 100), np.arange(200), evaluator=Neither, resamples=20)
    assert found["metric"] is found["worst"] is found["slices"][0]["gap"] is None
