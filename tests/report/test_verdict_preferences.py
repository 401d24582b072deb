"""What the verdict says of preferences: length, chosen answers that became less likely, pairs that differ in style."""

import numpy as np
import pytest
from report_samples import change, figure

from ftengine_builtins.evaluators import Preferences
from ftengine_builtins.rules.preferences import ChosenAnswers, LongerAnswers, SeparablePairs


def rows(n=40, seed=0, **columns):
    draw = np.random.default_rng(seed)
    found = {name: draw.normal(size=n) for name in ("chosen_logp", "rejected_logp", "margin")}
    found |= {name: draw.integers(1, 9, n) for name in ("chosen_tokens", "rejected_tokens")}
    return found | {name: np.asarray(column) for name, column in columns.items()}


def test_the_baseline_goes_by_the_length_that_is_more_often_chosen():
    for chosen, rejected, way, reached in (
        ([5, 5, 5, 1], [1, 1, 1, 5], "longer", 0.75),
        ([1, 1, 1, 5], [5, 5, 5, 1], "shorter", 0.75),
        ([5, 5, 3, 3], [1, 1, 3, 3], "longer", 0.75),
    ):
        some = rows(4, chosen_tokens=chosen, rejected_tokens=rejected)
        drawn = Preferences().baseline_resamples(some, np.ones((1, 4)))
        assert drawn["preference_accuracy"] == pytest.approx([reached])
        details = dict(one for one in Preferences().details(some, _estimate) if isinstance(one, tuple))
        assert details["baseline"]["way"] == f"preferring the {way} answer"
        assert details["baseline"]["figures"] == {"preference_accuracy": reached}


def _estimate(values, trials=None):
    from ftengine.api import Estimate

    return [Estimate(float(x), None, None, 4) for x in values(np.ones((1, 4)))[0]]


class Run:
    """As much of a run's records as these rules read."""

    def __init__(self, change, accuracy, nll=None, loss=None, losses=(), words=None):
        from types import SimpleNamespace

        from ftengine.api import Difference, Estimate

        difference = Difference(change, change - 0.5, change + 0.5, 0.01, None)
        sides = {
            name: Estimate(value, value - 1, value + 1, 60)
            for name, value in (("base", -9.0), ("tuned", -9.0 + change))
        }
        self.recipe = SimpleNamespace(task={"name": "preference", "nll": nll, "loss": loss})
        self.steps = [SimpleNamespace(loss=loss) for loss in losses]
        self.evaluation = SimpleNamespace(
            base={"chosen_logp": sides["base"]},
            tuned={"chosen_logp": sides["tuned"], "preference_accuracy": Estimate(accuracy, 0.9, 1.0, 60)},
            difference={"chosen_logp": difference},
        )
        if words is not None:
            self.evaluation.base["answer_words"] = Estimate(20.0, 18.0, 22.0, 60)
            self.evaluation.tuned["answer_words"] = Estimate(20.0 + words, 18.0 + words, 22.0 + words, 60)
            self.evaluation.difference["answer_words"] = Difference(words, words - 2, words + 2, 0.01, None)


@pytest.mark.parametrize(("change", "found"), [(-2.0, 1), (-0.3, 0), (2.0, 0)])
def test_chosen_answers_that_became_less_likely_are_reported_with_what_helps(change, found):
    told = list(ChosenAnswers().judge(Run(change, 0.8)))
    assert len(told) == found
    for one in told:
        assert "task.nll" in one.text
        assert one.figures["difference"]["value"] == change
    for own in ({"nll": 0.1}, {"loss": "orpo"}):
        for one in ChosenAnswers().judge(Run(change, 0.8, **own)):
            assert "task.nll" not in one.text


@pytest.mark.parametrize(("accuracy", "found"), [(1.0, 1), (0.995, 1), (0.95, 0)])
def test_pairs_that_are_all_distinguished_are_to_be_looked_at(accuracy, found):
    assert len(list(SeparablePairs().judge(Run(0.0, accuracy)))) == found


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        ([0.69, 0.4, 0.05, 0.01, 0.02, 0.01], 2),
        ([0.69] * 30 + [0.01] * 30, None),
        ([0.69, 0.01, 0.3, 0.2], None),
        ([], None),
    ],
)
def test_pairs_that_are_distinguished_within_a_few_steps_are_reported_so(losses, steps):
    [found] = SeparablePairs().judge(Run(0.0, 1.0, losses=losses))
    assert found.figures.get("steps") == steps


@pytest.mark.parametrize(("words", "said"), [(7.0, "35 % longer"), (-5.0, "25 % shorter"), (1.0, None), (None, None)])
def test_answers_that_became_longer_or_shorter_are_reported(words, said):
    found = list(LongerAnswers().judge(Run(0.0, 0.8, words=words)))
    assert [said in one.text for one in found] == ([] if said is None else [True])


def pairs(value, half, seen, **more):
    """Return changes: preferences of which so large a share is told rightly, with half of the interval."""

    def spoil(files):
        evaluation = files["evaluation"]
        shares = {"label": "preference accuracy", "higher_is_better": True, "proportion": True, "evaluator": "pairs"}
        evaluation["metrics"] = {"preference_accuracy": shares}
        evaluation["base"] = {"preference_accuracy": figure(0.5, half)}
        evaluation["tuned"] = {"preference_accuracy": figure(value, half)}
        evaluation["difference"] = {"preference_accuracy": change(value - 0.5, half, better=None)}
        evaluation |= {"details": {}, "displays": {}, "paired": None, "slices": {}}
        evaluation["training"] = seen and {"n": 200, "tuned": {"preference_accuracy": figure(seen, 0.02)}, "base": {}}

    return spoil


@pytest.mark.parametrize(
    ("value", "half", "seen", "key", "level"),
    [
        (0.02, 0.02, 0.99, "swapped", "alarm"),
        (0.02, 0.02, None, None, None),
        (0.45, 0.03, 0.48, None, None),
        (0.50, 0.04, 0.9, "uninformative", "alarm"),
        (0.46, 0.08, None, "uninformative", "alarm"),
        (0.52, 0.08, 0.9, "uninformative", "alarm"),  # learnt by heart
        (0.52, 0.08, None, "uninformative", "alarm"),  # the same by the losses of the last validation
        (0.58, 0.08, None, "uninformative", "note"),  # as an honest model of 150 pairs in one run of two
        (0.52, 0.2, 0.9, None, None),  # few pairs
        (0.7, 0.08, 0.9, None, None),
    ],
)
def test_exchanged_answers_and_preferences_that_nothing_tells_lead_the_verdict(verdict, value, half, seen, key, level):
    def passes(files):
        for line in files["metrics"]:
            line |= {"examples": 32} if "loss" in line else {}

    told = verdict(pairs(value, half, seen), passes)
    found = [one for one in told.findings if one.source == "swapped-pairs"]
    assert [one.figures.get(key) for one in found] == (["test"] if key else [])
    assert (told.findings[level == "note"].source == "swapped-pairs") == (level is not None)
    assert [one.level for one in found] == ([level] if level else [])
