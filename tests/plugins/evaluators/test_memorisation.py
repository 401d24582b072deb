"""What counts as reproduced word for word."""

import json
import math

import numpy as np
import pytest

from ftengine.api import EvaluationContext
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import compare
from ftengine_builtins.evaluators.memorisation import Memorisation, MemorisationConfig, words

LINE = "Open the settings, choose the account, and follow the link."


def accumulate(pairs, prefix=3, resamples=200):
    evaluator = Memorisation(MemorisationConfig(prefix=prefix))
    accumulator = Accumulator([evaluator], EvaluationContext("causal-lm"), resamples, predicts=Memorisation.reads)
    for index, (said, wanted) in enumerate(pairs):
        accumulator.update(index, {"completion": said, "reference": wanted})
    return accumulator


def values(pairs, prefix=3):
    return {name: figure.value for name, figure in accumulate(pairs, prefix).figures().items()}


@pytest.mark.parametrize(
    ("said", "verbatim", "prefix", "run"),
    [
        (LINE, 1, 1, 1),
        (f"  {LINE.replace(' ', chr(10))} ", 1, 1, 1),  # white space does not count
        (LINE + " Bye.", 0, 1, 1),  # more than the reference is not the reference
        ("Open the settings, please.", 0, 1, 4 / 13),  # of ten words and three marks
        (LINE.lower(), 0, 0, 12 / 13),
        ("Well: choose the account", 0, 0, 3 / 13),
        ("", 0, 0, 0),
    ],
)
def test_a_reference_is_compared_word_by_word(said, verbatim, prefix, run):
    assert values([(said, LINE)]) == {
        "verbatim": verbatim,
        "prefix_verbatim": prefix,
        "longest_run": pytest.approx(run),
    }


def test_all_of_a_shorter_reference_counts_as_its_beginning():
    assert values([("yes", "yes")], prefix=20)["prefix_verbatim"] == 1
    assert values([("yes", "yes sir")], prefix=20)["prefix_verbatim"] == 0


def test_scripts_without_spaces_are_compared_by_the_character():
    assert words("日本語 text、🙂") == ["日", "本", "語", "text", "、", "🙂"]
    assert values([("日本人", "日本語")])["longest_run"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("reference", [None, "", " \n"])
def test_without_a_reference_nothing_is_said(reference):
    accumulator = accumulate([("some answer", reference)] * 5)
    assert all(math.isnan(figure.value) for figure in accumulator.figures().values())
    assert accumulator.details()["memorisation"] == {"references": 0, "reference_words": None}
    json.dumps(accumulator.details(), allow_nan=False)


def test_reproducing_more_than_the_base_is_worse():
    base = accumulate([("Something else.", LINE)] * 30)
    tuned = accumulate([(LINE, LINE)] * 30)
    difference = compare(base, tuned)
    assert all(d.value > 0 and d.better is False for d in difference.values())
    assert tuned.results()["verbatim"].low == pytest.approx(0.886, abs=1e-3)  # Wilson's of 30


def test_sums_of_two_processes_equal_one_pass():
    pairs = [(LINE[:n], LINE) for n in range(0, len(LINE), 3)]
    a, b = accumulate([]), accumulate([])
    for index, (said, wanted) in enumerate(pairs):
        (a if index % 2 else b).update(index, {"completion": said, "reference": wanted})
    a.merge(b)
    assert a.sums()["memorisation"] == pytest.approx(accumulate(pairs).sums()["memorisation"], rel=1e-12)


def test_long_repetitive_answers_are_compared():
    row = Memorisation().statistics({"completion": "a " * 2000, "reference": "a " * 2000})
    assert np.array_equal(row, [1, 1, 1, 1, 2000])
