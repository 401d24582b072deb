"""Slices against all other examples: by hand, against scipy, and against statsmodels' formula where there is one."""

import numpy as np
import pytest
from scipy import stats

from ftengine.api import EvaluationContext, Evaluator
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.gaps import Gap
from ftengine.evaluation.judgements import Judgements
from ftengine.evaluation.multiple import holm
from ftengine.evaluation.slices import Judged, Slicing, adjust_over_columns, gap_of, slice_report

CONTEXT = EvaluationContext("some-task")


class Share(Evaluator):
    """Share of right answers."""

    name = "share"
    higher_is_better = {"share": True}  # noqa: RUF012

    def statistics(self, prediction):
        return prediction["right"], 1

    def metrics(self, sums):
        return {"share": sums[..., 0] / sums[..., 1]}

    def trials(self, sums):
        return {"share": sums[1]}


class Mean(Evaluator):
    """Mean error."""

    name = "mean"
    higher_is_better = {"mean": False}  # noqa: RUF012

    def statistics(self, prediction):
        return prediction["x"], 1

    def metrics(self, sums):
        return {"mean": sums[..., 0] / sums[..., 1]}


def measured(evaluator, predictions, codes, resamples=1000):
    whole = Accumulator([evaluator], CONTEXT, resamples)
    parts = [Accumulator([evaluator], CONTEXT, resamples) for _ in range(max(codes) + 1)]
    for index, (code, prediction) in enumerate(zip(codes, predictions, strict=True)):
        whole.update(index, prediction)
        if code >= 0:
            parts[code].update(index, prediction)
    return whole, parts


def test_newcombes_interval_equals_the_published_example():
    """Newcombe 1998, table II, (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339."""
    gap = Gap(56 / 70 - 48 / 80, 48 / 80, 56 / 70, (80.0, 70.0), None)
    assert gap.interval() == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_p_value_is_the_level_at_which_the_interval_reaches_zero():
    gap = Gap(56 / 70 - 48 / 80, 48 / 80, 56 / 70, (80.0, 70.0), None)
    low, high = gap.interval(1 - gap.p())
    assert min(abs(low), abs(high)) < 1e-6
    assert Gap(0.0, 0.5, 0.5, (10.0, 10.0), None).p() == 1.0


def test_a_mean_gap_is_welchs_t_test():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 300).tolist()
    x = rng.normal(1.0, 0.3, 300) + 0.08 * (np.array(codes) == 1)
    whole, parts = measured(Mean(), [{"x": value} for value in x], codes, resamples=4000)
    gap = gap_of(whole, parts, 1, "mean")
    inside, outside = x[np.array(codes) == 1], x[np.array(codes) != 1]
    test = stats.ttest_ind(inside, outside, equal_var=False)
    assert gap.value == pytest.approx(inside.mean() - outside.mean())
    assert gap.p() == pytest.approx(test.pvalue, rel=0.25)
    assert gap.interval() == pytest.approx(tuple(test.confidence_interval()), abs=0.006)


def test_the_others_are_all_examples_but_the_slice_also_those_of_no_slice():
    codes = [0, 0, 1, 1, -1, -1]
    right = [1, 1, 0, 1, 0, 0]
    whole, parts = measured(Share(), [{"right": value} for value in right], codes, resamples=100)
    rest = whole.without(parts[0])
    assert rest.examples == 4
    assert rest.results()["share"].value == pytest.approx(1 / 4)
    alone = measured(Share(), [{"right": value} for value in right], [-1, -1, 0, 0, 0, 0], resamples=100)[1][0]
    np.testing.assert_array_equal(rest.sums()["share"], alone.sums()["share"])


def report(rates, counts, small=30, codes=None):
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(len(counts)), counts) if codes is None else codes
    right = [int(rng.random() < rates[code]) for code in codes]
    both = measured(Share(), [{"right": value} for value in right], codes.tolist())
    names = [f"v{i}" for i in range(len(counts))]
    return slice_report(Slicing(names, codes.astype(np.int8)), both, both, small)


def test_a_slice_that_is_served_worse_is_named_with_a_corrected_p():
    found = report([0.95, 0.95, 0.6], [200, 200, 100])
    assert (found["metric"], found["worst"], found["left_out"]) == ("share", "v2", 0)
    worst = found["slices"][2]
    assert worst["examples"] == 100
    assert worst["gap"]["p"] < worst["gap"]["p_adjusted"] == found["gap"]["p"] < 1e-6
    assert worst["gap"]["p_adjusted"] == pytest.approx(3 * worst["gap"]["p"])
    assert {key: found["gap"][key] for key in ("low", "high")} == {key: worst["gap"][key] for key in ("low", "high")}
    single = found["base_gap"]  # the same model, and an interval for this slice alone
    assert found["gap"]["low"] < single["low"] < single["high"] < found["gap"]["high"] < 0
    assert found["base_gap"]["value"] == found["gap"]["value"]


def test_every_judged_slice_has_its_gap_and_the_surest_is_the_worst():
    """Of a small slice far behind and a large one nearly as far, the large one is known to be behind."""
    found = report([0.94, 0.75, 0.78], [2000, 40, 1000])
    assert found["worst"] == "v2"
    for one in found["slices"]:
        assert one["gap"]["low"] < one["gap"]["value"] < one["gap"]["high"]
    assert found["slices"][2]["gap"]["p_adjusted"] < 1e-6


def test_a_slice_whose_texts_all_stand_elsewhere_too_still_has_a_gap():
    """Two annotators of the same texts: nothing is left of the others when duplicates are counted out."""
    n = 200
    rng = np.random.default_rng(3)
    codes, groups = np.repeat([0, 1], n), np.tile(np.arange(n), 2)
    right = (rng.random(2 * n) < np.where(codes == 1, 0.6, 0.94)).astype(int)
    whole = Accumulator([Share()], CONTEXT, 1000, distinct=n)
    parts = [Accumulator([Share()], CONTEXT, 1000, distinct=n) for _ in range(2)]
    for code, group, value in zip(codes, groups, right, strict=True):
        for accumulator in (whole, parts[code]):
            accumulator.update(int(group), {"right": value})
    both = (whole, parts)
    found = slice_report(Slicing(["a", "b"], codes.astype(np.int8)), both, both, 30, None, groups)
    assert found["worst"] == "b"
    gap = found["gap"]
    assert gap["low"] < right[n:].mean() - right[:n].mean() < gap["high"] < 0
    assert gap["high"] - gap["low"] < 0.25  # 400 answers of 200 texts, not a handful


def test_p_values_are_adjusted_over_the_slices_of_all_columns():
    """Two columns, of two slices (one question) and of three: four questions in all."""
    columns = {"two": report([0.9, 0.75], [200, 200]), "three": report([0.95, 0.95, 0.6], [200, 200, 100])}
    raw = [columns["two"]["gap"]["p"], *(one["gap"]["p"] for one in columns["three"]["slices"])]
    adjust_over_columns(columns)
    shown = [columns["two"]["slices"][0]["gap"], *(one["gap"] for one in columns["three"]["slices"])]
    assert [gap["p_adjusted"] for gap in shown] == pytest.approx(holm(raw))
    assert columns["two"]["slices"][1]["gap"]["p_adjusted"] == shown[0]["p_adjusted"] > shown[0]["p"]
    assert [columns[name]["gap"]["p"] for name in columns] == [shown[0]["p_adjusted"], shown[3]["p_adjusted"]]
    changes = [one["difference"]["share"] for column in columns.values() for one in column["slices"]]
    assert [change["p_adjusted"] for change in changes] == pytest.approx(holm([change["p"] for change in changes]))


def test_a_small_slice_is_flagged_and_never_called_worst():
    found = report([0.9, 0.8, 0.0], [200, 200, 8])
    assert [one["small"] for one in found["slices"]] == [False, False, True]
    assert found["worst"] == "v1"
    assert found["slices"][2]["gap"] is None


def test_the_gap_between_two_slices_is_one_question():
    found = report([0.9, 0.7], [100, 100])
    assert found["gap"]["p"] == found["slices"][1]["gap"]["p"] == found["slices"][0]["gap"]["p"]
    assert found["gap"]["low"] == found["slices"][1]["gap"]["low"]


def test_without_a_difference_a_worst_slice_is_seldom_called_so():
    """Ten equal slices: the worst of them is below the level in about 5 % of the sets, not in 40 %."""
    called = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        codes = np.repeat(np.arange(10), 40)
        right = (rng.random(400) < 0.8).astype(int)
        both = measured(Share(), [{"right": int(value)} for value in right], codes.tolist(), resamples=200)
        slicing = Slicing([str(i) for i in range(10)], codes.astype(np.int8))
        called += slice_report(slicing, both, both, 30)["gap"]["p"] <= 0.05
    assert called <= stats.binom.isf(0.001, 60, 0.05)


COLUMN = np.repeat(np.arange(20), 40).astype(np.int8)
"""Twenty slices of 40 examples."""


def fallen(wrong, evaluator=Share, key="right", judged=False):
    """Return the report where the base is right everywhere and the tuned model wrong on so many of the first slice."""
    after = np.ones(len(COLUMN), dtype=np.int8)
    after[:wrong] = 0
    sides = []
    for right in (np.ones_like(after), after):
        judgements = Judgements(right.astype(np.float32), right)
        sides.append((measured(evaluator(), [{key: int(x)} for x in right], COLUMN.tolist(), 200), judgements))
    (base, before), (tuned, now) = sides
    names = [str(i) for i in range(20)]
    return slice_report(Slicing(names, COLUMN), base, tuned, 30, Judged(before, now) if judged else None)


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("wrong", [20, 40])
def test_one_slice_of_twenty_that_falls_stays_beyond_chance_after_adjusting(wrong, judged):
    found = fallen(wrong, judged=judged)["slices"][0]["difference"]["share"]
    assert found["better"] is False
    assert found["p_adjusted"] == pytest.approx(20 * found["p"])
    assert found["p_adjusted"] < 1e-3  # the bootstrap alone: at 200 resamples 20 · 2/201


def test_slices_are_tested_by_mcnemar_where_the_metric_is_the_share_of_right_answers():
    exact = stats.binomtest(0, 5).pvalue
    found = fallen(5, judged=True)["slices"][0]["difference"]["share"]
    assert (found["p"], found["better"]) == (pytest.approx(exact), None)
    other = fallen(5, Mean, "x", judged=True)["slices"][0]["difference"]["mean"]
    assert other["p"] == found["p"]  # a mean of right and wrong is that share, whatever it is called

    class Twice(Mean):
        def metrics(self, sums):
            return {"mean": 2 * sums[..., 0] / sums[..., 1]}

    assert fallen(5, Twice, "x", judged=True)["slices"][0]["difference"]["mean"]["p"] != pytest.approx(exact)


def test_a_metric_without_a_direction_makes_no_slice_worst():
    class Neither(Mean):
        higher_is_better = {"mean": None}  # noqa: RUF012

    both = measured(Neither(), [{"x": float(i)} for i in range(800)], COLUMN.tolist(), resamples=20)
    report = slice_report(Slicing([str(i) for i in range(20)], COLUMN), both, both, 30)
    assert report["metric"] is report["worst"] is report["gap"] is None
