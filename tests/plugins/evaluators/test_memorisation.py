"""What counts as reproduced word for word."""

import math

import pytest

from ftengine_builtins.evaluators.memorisation import Memorisation, words

LINE = "Open the settings, choose the account, and follow the link."


def of(scored, pairs, prefix=3):
    rows = [{"completion": said, "reference": wanted} for said, wanted in pairs]
    return scored(Memorisation(Memorisation.Config(prefix=prefix)), rows)


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
def test_a_reference_is_compared_word_by_word(scored, said, verbatim, prefix, run):
    expected = {"verbatim": verbatim, "prefix_verbatim": prefix, "longest_run": pytest.approx(run)}
    assert of(scored, [(said, LINE)]).scores == expected


def test_all_of_a_shorter_reference_counts_as_its_beginning(scored):
    assert of(scored, [("yes", "yes")], prefix=20).scores["prefix_verbatim"] == 1
    assert of(scored, [("yes", "yes sir")], prefix=20).scores["prefix_verbatim"] == 0


def test_scripts_without_spaces_are_compared_by_the_character(scored):
    assert words("日本語 text、🙂") == ["日", "本", "語", "text", "、", "🙂"]
    assert of(scored, [("日本人", "日本語")]).scores["longest_run"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("reference", [None, "", " \n"])
def test_without_a_reference_nothing_is_said(scored, reference):
    found = of(scored, [("some answer", reference)] * 5)
    assert all(math.isnan(score) for score in found.scores.values())
    assert found.details()[0] == {"references": 0, "reference_words": None}


def test_trials_are_the_references(scored):
    found = of(scored, [(LINE, LINE), ("Open the settings, please.", LINE), ("?", None)])
    assert found.evaluator.trials(found.rows) == {"verbatim": 2, "prefix_verbatim": 2}
    assert of(scored, [(LINE, LINE)] * 9).evaluator.trials(of(scored, [(LINE, LINE)] * 9).rows)["longest_run"] == 9
    assert {metric.higher_is_better for metric in Memorisation.metrics.values()} == {False}


def test_long_repetitive_answers_are_compared():
    kept = Memorisation().keep({"completion": "a " * 2000, "reference": "a " * 2000})
    assert kept == {"verbatim": 1, "prefix_verbatim": 1, "longest_run": 1, "reference_words": 2000}
