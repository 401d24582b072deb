"""What counts as reproduced word for word."""

import math

import pytest

from ftengine_builtins.evaluators.memorisation import Memorisation

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


@pytest.mark.parametrize("reference", [None, "", " \n"])
def test_without_a_reference_there_is_no_finding(scored, reference):
    found = of(scored, [("some answer", reference)] * 5)
    assert all(math.isnan(score) for score in found.scores.values())
    assert found.details()[0] == {"references": 0, "reference_words": None}
