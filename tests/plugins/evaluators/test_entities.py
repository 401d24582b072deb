"""Figures of tagged words, against counts made by hand and by scikit-learn."""

import math

import pytest

from ftengine.api import Labels
from ftengine_builtins.evaluators.entities import Entities

NAMES = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")


def bound(names=NAMES, kind="single"):
    evaluator = Entities()
    evaluator.set_labels("token-classification", Labels(kind, names))
    return evaluator


def prediction(true, predicted, names=NAMES):
    true, predicted = ([names.index(tag) for tag in tags.split()] for tags in (true, predicted))
    return {"tags": true, "predicted_tags": predicted}


EXAMPLES = [
    # 2 true; the person is right, the place is called one.
    prediction("B-PER I-PER O B-LOC", "B-PER I-PER O B-PER"),
    # Half of an entity is none.
    prediction("B-LOC I-LOC O", "B-LOC O O"),
    prediction("O O", "O B-LOC"),
    prediction("B-LOC", "B-LOC"),
]


def test_an_entity_is_right_as_a_whole_or_not_at_all(scored):
    found = scored(bound(), EXAMPLES)
    # right: PER, LOC; predicted: PER PER LOC LOC LOC; true: PER LOC LOC LOC.
    expected = {"precision": 2 / 5, "recall": 2 / 4, "f1": 2 * 2 / 9, "token_accuracy": 7 / 10}
    assert found.scores == pytest.approx(expected)
    trials = found.evaluator.trials(found.rows)
    assert trials == {"token_accuracy": 10, "precision": 5, "recall": 4, "f1": 4.5}
    for rows, values in found.resamples(10):
        if len(rows):
            assert values == pytest.approx(scored(bound(), [EXAMPLES[i] for i in rows]).scores, nan_ok=True)


@pytest.mark.parametrize("examples", [EXAMPLES, [prediction("B-LOC I-LOC I-LOC I-LOC O O O", "O O O O O O O")]])
def test_the_baseline_is_what_calling_every_word_an_entity_comes_to(scored, examples):
    """An I for every word is one entity of the whole example: long entities are no baseline that is hard to beat."""
    same = [{**one, "predicted_tags": [NAMES.index("B-LOC")] * len(one["tags"])} for one in examples]
    figures = scored(bound(), examples).details()[0]["baseline"]["figures"]
    assert figures["f1"] == pytest.approx(scored(bound(), same).scores["f1"])


@pytest.mark.parametrize(("names", "kind"), [(("DET", "NOUN"), "single"), (("B-X", "O"), "tags")])
def test_without_entities_there_is_accuracy_alone(scored, names, kind):
    example = prediction(f"{names[0]} {names[1]} {names[1]}", f"{names[0]} {names[0]} {names[1]}", names)
    found = scored(bound(names, kind), [example])
    assert found.scores == {"token_accuracy": pytest.approx(2 / 3)}
    assert found.evaluator.metrics.keys() == {"token_accuracy"}
    assert found.evaluator.trials(found.rows) == {"token_accuracy": 3}
    facts, displays = found.details()
    assert (facts.keys(), displays) == ({"baseline"}, {})
    assert facts["baseline"]["figures"] == {"token_accuracy": pytest.approx(2 / 3)}


def test_an_example_is_scored_by_its_words(scored):
    rows = [{"tags": [0, 1, 1, 0], "predicted_tags": [0, 1, 0, 0]}, {"tags": [0], "predicted_tags": [0]},
            {"tags": [], "predicted_tags": []}]  # fmt: skip
    found = scored(bound(), rows)
    examples = found.evaluator.score_examples(found.rows)
    assert examples.score == pytest.approx([0.75, 1, math.nan], nan_ok=True)
    assert examples.right == pytest.approx([0, 1, math.nan], nan_ok=True)
