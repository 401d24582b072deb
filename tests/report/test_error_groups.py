"""Where the errors of a run lie: by what rows hold, whatever the task."""

import random

import pytest
from report_samples import figure
from verdicts import put, reached

ROWS = 160


def wrong_in(group, often=0.9, seldom=0.05, seed=0):
    """Return for each row whether it is answered wrongly: those of a group often, others seldom."""
    rng = random.Random(seed)
    return [rng.random() < (often if of else seldom) for of in group]


def classes(wrong):
    return {"label": [i % 3 for i in range(ROWS)], "predicted": [(i + w) % 3 for i, w in enumerate(wrong)]}


def preferences(wrong):
    return {"margin": [-0.3 if w else 0.2 for w in wrong]}


def triplets(wrong):
    return {"triplets.margin": [-0.3 if w else 0.2 for w in wrong]}


def tags(wrong):
    return {"tags": [[0, 1, 2]] * ROWS, "predicted_tags": [[1, 2, 0] if w else [0, 1, 2] for w in wrong]}


def numbers(wrong):
    rng = random.Random(1)
    target = [rng.gauss(0, 1) for _ in wrong]
    return {"target": target, "value": [x + 3 * w + rng.gauss(0, 0.2) for x, w in zip(target, wrong, strict=True)]}


OWN = {"row": list(range(ROWS)), "place": [f"test.jsonl:{i + 1}" for i in range(ROWS)],
       "group": list(range(ROWS)), "duplicate": list(range(ROWS))}  # fmt: skip


def losses(wrong):
    rng = random.Random(1)
    return {"loss": [10 * rng.uniform(8, 9) if w else rng.uniform(10, 20) for w in wrong], "tokens": [10] * ROWS}


def table(columns, predictions, name="test-tuned"):
    """Return a change: the run has a table of predictions, with columns of the rows."""
    return put("predictions", {name: OWN | predictions | {f"row.{key}": of for key, of in columns.items()}})


def unread(*names):
    return put("audit.encoded.train.unread", dict.fromkeys(names, "train.jsonl:1"))


def found(told):
    return [one for one in told.findings if one.source == "error-groups"]


EXPORT = ["2024-02" if i % 5 == 0 else "2023-11" for i in range(ROWS)]


@pytest.mark.parametrize("predictions", [classes, preferences, triplets, tags, numbers, losses])
@pytest.mark.parametrize("name", ["test-tuned", "training-tuned"])
def test_a_value_of_an_unread_column_in_which_errors_lie_leads(verdict, predictions, name):
    answers = predictions(wrong_in([value == "2024-02" for value in EXPORT]))
    told = verdict(table({"export": EXPORT}, answers, name), unread("export"))
    (finding,) = found(told)
    assert finding is told.findings[0]
    assert (finding.level, finding.figures["rows"]) == ("alarm", 32)
    assert "export" in told.headline
    assert "2024-02" in told.headline


VALUES = {
    "word": [f"row {i:03} is {('not', 'now')[i % 6 > 0]} nice" for i in range(ROWS)],
    "length": [f"{'word' * (i % 40 + 1)} {i}" for i in range(ROWS)],
    "number": [str(i * 37 % ROWS) for i in range(ROWS)],
    "date": [f"2024-{i % 12 + 1:02}-{i % 28 + 1:02}" for i in range(ROWS)],
}
GROUPS = {
    "word": [i % 6 == 0 for i in range(ROWS)],
    "length": [i % 40 >= 30 for i in range(ROWS)],
    "number": [i * 37 % ROWS >= 120 for i in range(ROWS)],
    "date": [i % 12 < 3 for i in range(ROWS)],
    "place": [i >= 120 for i in range(ROWS)],
}


@pytest.mark.parametrize("what", GROUPS)
def test_words_lengths_numbers_dates_and_places_divide_rows_as_well(verdict, what):
    columns = {"text": VALUES[what]} if what in VALUES else {}
    told = verdict(table(columns, classes(wrong_in(GROUPS[what]))))
    (finding,) = found(told)
    assert finding.level == "alarm"
    words = {"word": "“not”", "length": "the length of `text`", "number": "`text`", "date": "`text`", "place": "place"}
    assert words[what] in finding.figures["where"]


def test_what_tells_nearly_the_same_rows_is_named_as_well(verdict):
    other = [("x" if value == "2024-02" else "y") if i % 40 else "y" for i, value in enumerate(EXPORT)]
    answers = classes(wrong_in([value == "2024-02" for value in EXPORT], 1.0, 0.0))
    told = verdict(table({"export": EXPORT, "maker": other}, answers), unread("export", "maker"))
    assert "`maker` is “x”" in found(told)[0].brief


def test_errors_at_random_lie_nowhere(verdict):
    rng, texts = random.Random(5), [" ".join(random.Random(i).choices("abcdefghijkl", k=5)) for i in range(ROWS)]
    for seed in range(8):
        wrong = wrong_in([rng.random() < 0.5 for _ in range(ROWS)], 0.3, 0.1, seed)
        assert found(verdict(table({"text": texts, "export": EXPORT}, classes(wrong)), unread("export"))) == []


def test_a_label_that_is_harder_is_left_to_other_rules(verdict):
    wrong = wrong_in([i % 3 == 0 for i in range(ROWS)])
    words = [f"{'abc'[i % 3]} {i}" for i in range(ROWS)]
    assert found(verdict(table({"text": words, "label": [*"abc"] * 53 + ["a"]}, classes(wrong)))) == []


def test_rows_that_are_somewhat_harder_are_a_note_where_nothing_reads_what_divides_them(verdict):
    wrong = classes(wrong_in([value == "2024-02" for value in EXPORT], 0.35, 0.03))
    for columns, level in ((["export"], ["note"]), ([], [])):
        told = verdict(table({"export": EXPORT}, wrong), unread(*columns))
        assert [one.level for one in found(told)] == level


@pytest.mark.parametrize("place", [-1, 0, 1])
def test_displaced_tags_lead(verdict, place):
    rng = random.Random(2)
    truth = [[rng.choice([0, 0, 0, 1, 2]) for _ in range(12)] for _ in range(ROWS)]
    moved = [[0] * max(0, place) + tags[max(0, -place) : 12 - max(0, place)] + [0] * max(0, -place) for tags in truth]
    told = verdict(table({}, {"tags": truth, "predicted_tags": moved}))
    displaced = [one for one in told.findings if one.source == "displaced-tags"]
    assert [one.figures["place"] for one in displaced] == [place] * (place != 0)
    assert not displaced or displaced[0] is told.findings[0]


@pytest.mark.parametrize(
    ("change", "strategy", "limit"),
    [(0.001, {"name": "lora", "rank": 8, "alpha": 0.01}, "strategy.alpha"),
     (0.3, {"name": "lora", "rank": 8, "alpha": 0.01}, None),
     (0.001, {"name": "lora", "rank": 8, "alpha": 16}, "train.learning_rate")],
)  # fmt: skip
def test_an_update_without_effect_names_what_limits_it(verdict, change, strategy, limit):
    losses = [20.0 + i % 7 for i in range(ROWS)]
    tuned = [loss * (1 - change) for loss in losses]
    tables = {"training-base": OWN | {"loss": losses}, "training-tuned": OWN | {"loss": tuned}}
    told = verdict(
        put("predictions", tables), put("recipe.strategy", strategy), put("facts.new_modules", []),
        put("recipe.train.learning_rate", 1e-6),
    )  # fmt: skip
    still = [one for one in told.findings if one.source == "unmoved-predictions"]
    assert [one.figures["limit"] for one in still] == [limit] * (limit is not None)


UNUSUAL = [("train.weight_decay", 10), ("task", {"name": "embedding", "temperature": 20}),
           ("strategy", {"name": "lora", "alpha": 0.01}), ("strategy", {"name": "lora", "dropout": 0.9})]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), UNUSUAL)
@pytest.mark.parametrize("learnt", [True, False])
def test_an_option_far_outside_its_usual_range_leads_where_nothing_was_learnt(verdict, key, value, learnt):
    useless = reached(figures={"drift": 0.6})
    told = verdict(put(f"recipe.{key}", value), *([] if learnt else [useless]))
    (finding,) = (one for one in told.findings if one.source == "unusual-settings")
    assert finding.figures["option"].startswith(key)
    assert (finding.level, finding is told.findings[0]) == (("note", False) if learnt else ("alarm", True))


def test_rows_that_hold_most_errors_lead_before_a_test_split_that_is_far_worse_than_validation(verdict):
    answers = classes(wrong_in([value == "2024-02" for value in EXPORT]))
    told = verdict(table({"export": EXPORT}, answers), unread("export"), put("evaluation.tuned.loss", figure(3.0)))
    assert told.findings[0].source == "error-groups"
    assert any(one.source == "validation-and-test" and one.explained_by for one in told.findings)
