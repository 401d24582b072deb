"""The verdict on runs written by hand: each thing that can be wrong is named, with its figure, and nothing else is."""

import copy
import json

import pytest
from report_samples import change, everything, figure, sound, write_run

from ftengine.errors import RunError
from ftengine.report.files import RunFiles
from ftengine.report.findings.fitting import difference_of_independent, turning
from ftengine.report.verdict import judge
from ftengine.report.words import against, decimals, digits, interval, no_interval, percent, plain, with_interval
from ftengine.report.write import conclude, verdict_of
from ftengine.run.directory import RunDirectory


@pytest.fixture
def files(tmp_path):
    """The files of a sound run, to be spoilt."""
    content = sound()
    return RunFiles(tmp_path, **{key: value for key, value in content.items() if key != "examples"})


def found(files, kind, level=None):
    return [f for f in judge(files)["findings"][1:] if f["kind"] == kind and level in (None, f["level"])]


def alarms(files):
    return {finding["kind"] for finding in judge(files)["findings"] if finding["level"] == "alarm"}


def test_a_sound_run_draws_no_alarm_and_its_headline_has_the_figures(files):
    verdict = judge(files)
    assert verdict["level"] == "good"
    assert [f["level"] for f in verdict["findings"]].count("alarm") == 0
    assert verdict["headline"] == (
        "Better than its base: accuracy 0.930 against 0.650, a difference of +0.280 (95 % interval +0.250 to +0.310), "
        "p = 0.002, on 400 distinct examples of the test split."
    )


def test_a_difference_within_chance_is_not_called_better_and_says_what_would_show(files):
    files.evaluation["difference"]["accuracy"] = change(0.01, 0.03, better=None, p=0.5, detectable=0.043)
    first = judge(files)["findings"][0]
    assert first["level"] == "note"
    assert first["text"].startswith("Not shown to be better than its base: ")
    assert "0.043 or more in four of five tests" in first["text"]


def test_a_worse_headline_metric_is_an_alarm(files):
    files.evaluation["difference"]["accuracy"] = change(-0.1, better=False)
    verdict = judge(files)
    assert verdict["level"] == "alarm"
    assert verdict["headline"].startswith("Worse than its base: ")


def test_a_figure_that_is_not_a_number_is_an_alarm(files):
    none = {"value": None, "low": None, "high": None}
    files.evaluation["tuned"]["accuracy"] = none | {"n": 400}
    files.evaluation["difference"]["accuracy"] = none | {"p": None, "better": None}
    verdict = judge(files)
    text = "Not a number: the tuned model's accuracy is undefined on 400 distinct examples of the test split."
    assert (verdict["level"], verdict["headline"]) == ("alarm", text)
    files.evaluation["base"]["accuracy"] = none | {"n": 400}
    assert judge(files)["headline"] == f"{text[:-1]}, as is its base's."


def test_without_held_out_data_nothing_is_claimed(files):
    files.evaluation |= {"split": None, "base": {}, "tuned": {}, "difference": {}, "details": {}, "training": None}
    assert judge(files)["headline"].startswith("Nothing is known about quality: ")


def test_another_metric_that_got_worse_is_named(files):
    files.evaluation["difference"]["macro_f1"] = change(-0.05, better=False)
    (finding,) = found(files, "worse")
    assert finding["text"].startswith("Macro F1 got worse: 0.925 against 0.630")


def test_no_better_than_a_constant_answer_is_an_alarm(files):
    files.evaluation["tuned"]["accuracy"] = figure(0.36)
    (finding,) = found(files, "baseline", "alarm")
    assert "always answering “business” would be right in 35 %" in finding["text"]


def one_class(files):
    files.evaluation["details"]["tuned"]["classification"]["confusion"] = [[270, 0, 0], [0, 0, 0], [0, 0, 0]]
    files.evaluation["tuned"]["accuracy"] = {"value": 1.0, "low": 0.98, "high": 1.0, "n": 270}


def test_a_test_set_of_one_class_cannot_be_beaten_and_is_told(files):
    one_class(files)
    files.facts["new_modules"] = ["classifier"]
    (finding,) = found(files, "baseline")
    assert finding["level"] == "note"
    assert finding["text"] == (
        "The test split holds one class only (“business”): accuracy here says nothing of the others."
    )


def test_a_test_set_of_one_class_does_not_silence_or_sharpen_other_findings(files):
    one_class(files)
    files.evaluation["difference"]["accuracy"] = change(0.0, better=None, p=1.0)
    losses = [line for line in files.metrics if "loss" in line][:9]
    files.metrics = [line | {"loss": 1.6 - 0.01 * i} for i, line in enumerate(losses)]
    (finding,) = found(files, "learning")
    assert finding["level"] == "note"
    rows = [[0.03, False, f"news.jsonl:{i}"] for i in range(30)] + [[0.9, True, "news.jsonl:99"]] * 170
    files.evaluation["training"]["judged"]["rows"] = rows
    assert "may be flipped" in found(files, "labels", "alarm")[0]["text"]


def test_a_fresh_head_makes_the_base_a_low_bar(files):
    files.facts["new_modules"] = ["classifier"]
    (finding,) = found(files, "baseline", "note")
    assert "had learnt nothing" in finding["text"]


# Over-fitting


def validations(files, losses):
    files.metrics = [line for line in files.metrics if "loss" in line]
    files.metrics += [
        {"step": 20 * i, "epoch": i, "validation_loss": held} | ({} if seen is None else {"training_loss": seen})
        for i, (held, seen) in enumerate(losses, 1)
    ]


TURNED = [(0.6, 0.55), (0.4, 0.3), (0.5, 0.2), (0.62, 0.1), (0.7, 0.05)]


def test_over_fitting_says_where_the_gap_opened_and_is_a_note_where_earlier_weights_were_kept(files):
    validations(files, TURNED)
    files.training["best_step"] = 40
    (finding,) = found(files, "over-fitting")
    assert finding["level"] == "note"
    assert "the weights that were kept are from before (step 40)" in finding["text"]
    assert "from step 40 on, the validation loss rose from 0.400 to 0.700 (75 % more, by step 100)" in finding["text"]
    assert finding["figures"]["gap"] == pytest.approx(0.65)


def test_over_fitted_weights_that_were_kept_are_an_alarm(files):
    validations(files, TURNED)
    files.training["best_step"] = 40
    files.recipe["train"]["keep_best"] = False
    (finding,) = found(files, "over-fitting", "alarm")
    assert finding["text"].startswith("The kept weights are over-fitted: from step 40 on")
    assert "over-fitting" in judge(files)["headline"]


@pytest.mark.parametrize(
    ("losses", "turned"),
    [
        ([(0.6, 0.5), (0.4, 0.3), (0.41, 0.2)], False),  # less than RISE
        ([(0.6, 0.5), (0.4, 0.3), (0.43, 0.2)], True),
        ([(0.6, 0.5), (0.4, 0.3), (0.6, 0.5)], False),  # both rose
        ([(0.6, 0.5), (0.4, 0.3), (0.3, 0.2)], False),
        ([(0.6, None), (0.4, None), (0.6, None)], True),  # as runs of an older version have it
        ([(0.6, 0.5)], False),
    ],
)
def test_what_counts_as_turning(losses, turned):
    points = [{"step": i, "validation_loss": v, "training_loss": t} for i, (v, t) in enumerate(losses)]
    assert (turning(points) is not None) == turned


def test_far_better_on_training_examples_than_on_new_ones_is_an_alarm(files):
    files.evaluation["training"]["tuned"]["accuracy"] = figure(0.99, 0.01, 200)
    files.evaluation["tuned"]["accuracy"] = figure(0.75)
    (finding,) = found(files, "over-fitting", "alarm")
    assert finding["figures"]["gap"]["value"] == pytest.approx(0.24)
    assert finding["figures"]["gap"]["low"] == pytest.approx(0.24 - (0.01**2 + 0.03**2) ** 0.5)


def test_a_perplexity_is_compared_as_a_ratio(files):
    files.evaluation |= {
        "tuned": {"perplexity": figure(30.0, 2.0)},
        "base": {"perplexity": figure(50.0, 2.0)},
        "difference": {"perplexity": change(-20.0, 2.0)},
        "training": {"tuned": {"perplexity": figure(10.0, 1.0)}},
        "higher_is_better": {"perplexity": False},
        "details": {},
    }
    assert found(files, "over-fitting", "alarm")
    files.evaluation["training"]["tuned"]["perplexity"] = figure(24.0, 1.0)
    assert found(files, "over-fitting", "note")


def test_the_difference_of_independent_figures_is_newcombes():
    # Newcombe 1998, table II, example (a), method 10: 56/70 - 48/80 has the interval 0.0524 to 0.3339.
    first = {"value": 56 / 70, "low": 0.6919, "high": 0.8770}
    second = {"value": 48 / 80, "low": 0.4904, "high": 0.7006}
    gap = difference_of_independent(first, second)
    assert (gap["low"], gap["high"]) == (pytest.approx(0.0524, abs=5e-4), pytest.approx(0.3339, abs=5e-4))


# Learning


def flat_losses(files, first, last, noise=0.02):
    steps = [line for line in files.metrics if "loss" in line]
    for i, line in enumerate(steps):
        share = i / (len(steps) - 1)
        line["loss"] = first + (last - first) * share + noise * (-1) ** i
    files.metrics = steps


def test_a_loss_that_rose_is_an_alarm_about_the_learning_rate(files):
    flat_losses(files, 0.5, 1.5)
    (finding,) = found(files, "learning", "alarm")
    assert "The learning rate (0.0002) is probably too high" in finding["text"]


def test_a_loss_that_stayed_is_an_alarm_unless_something_is_better(files):
    flat_losses(files, 1.1, 1.1)
    assert not found(files, "learning")
    for difference in files.evaluation["difference"].values():
        difference["better"] = None
    assert "did not learn" in found(files, "learning", "alarm")[0]["text"]


@pytest.mark.parametrize("train", [{"epochs": 5}, None])
def test_a_recipe_without_a_learning_rate_is_judged(files, train):
    files.recipe["train"] = {"keep_best": True} | (train or {})
    flat_losses(files, 0.5, 1.5)
    assert "The learning rate is probably too high" in found(files, "learning", "alarm")[0]["text"]
    flat_losses(files, 1.1, 1.1)
    for difference in files.evaluation["difference"].values():
        difference["better"] = None
    assert "The learning rate may be far too low" in found(files, "learning", "alarm")[0]["text"]
    files.metrics = files.metrics[:9]
    assert "More steps or a higher learning rate are what" in found(files, "learning")[0]["text"]


@pytest.mark.parametrize(
    ("losses", "training", "keep_best", "chosen"),
    [
        ([(0.9, 0.9), (0.5, 0.5)], {}, True, True),  # the last is the best, and was chosen all the same
        ([(0.9, 0.9), (0.5, 0.5)], {}, False, False),
        ([(0.5, 0.5)], {}, True, False),
        ([(0.5, 0.5)], {"regularizers": [{"name": "between", "needs_validation": True}]}, True, True),
        ([(0.5, 0.5)], {"regularizers": [{"name": "between", "needs_validation": False}]}, True, False),
        ([(0.9, 0.9), (0.5, 0.5)], {"stopped_early": True}, False, True),
    ],
)
def test_weights_chosen_on_the_split_that_is_measured_are_said_to_be(files, losses, training, keep_best, chosen):
    validations(files, losses)
    files.evaluation["split"] = "validation"
    files.training |= {"steps": 20 * len(losses), "best_step": 20 * len(losses), "stopped_early": False, **training}
    files.recipe["train"]["keep_best"] = keep_best
    (finding,) = [f for f in found(files, "data") if "no test split" in f["text"]]
    assert ("chose which weights are kept" in finding["text"]) == chosen


def test_a_validation_loss_that_still_falls_steeply_is_noted(files):
    validations(files, [(0.9, 0.8), (0.6, 0.5), (0.4, 0.3)])
    (finding,) = found(files, "learning", "note")
    assert "by 33 % from step 40 to 60" in finding["text"]


# Data and labels


def test_a_leak_into_the_measured_split_is_an_alarm(files):
    files.audit["leaks"] = [{"between": ["train", "test"], "count": 3, "near": 2, "places": ["a:1 = b:2"]}]
    (finding,) = found(files, "data", "alarm")
    assert "of the 400 test rows, 3 word for word and 2 nearly so stand in the training split" in finding["text"]


@pytest.mark.parametrize(
    ("keep_best", "why"), [(True, "Validation chose the weights, so"), (False, "Choices are made by validation, so")]
)
def test_a_leak_between_validation_and_test_is_a_note(files, keep_best, why):
    files.audit["leaks"] = [{"between": ["validation", "test"], "count": 30, "near": 0, "places": ["a:1 = b:2"]}]
    files.recipe["train"]["keep_best"] = keep_best
    (finding,) = found(files, "data")
    assert finding["level"] == "note"
    assert finding["text"] == (
        "Leak: of the 400 test rows, 30 word for word stand in the validation split too (e.g. a:1 = b:2). "
        f"{why} that figures on them are somewhat flattering."
    )


def test_groups_on_both_sides_are_a_leak_of_their_own(files):
    """Other texts of one patient: no row repeats another, and the figures say nothing of new patients all the same."""
    files.recipe["data"]["split"] = {"by": "group", "column": "patient"}
    places = {"places": ["a:1 & b:2"]}
    files.audit["leaks"] = [{"between": ["train", "test"], "count": 0, "near": 0, "groups": 10, **places}]
    (finding,) = found(files, "data", "alarm")
    assert (
        "Leak: 10 values of column “patient” are in the training and in the test split (e.g. a:1 & b:2)."
        in (finding["text"])
    )


def test_leaks_that_were_dropped_are_none(files):
    files.audit["leaks"] = [{"between": ["train", "test"], "count": 3, "near": 0, "places": ["a = b"], "dropped": 3}]
    assert not found(files, "data")


@pytest.mark.parametrize(("copies", "level"), [(50, None), (100, "note"), (1000, "alarm")])
def test_duplicates_are_judged_by_their_share(files, copies, level):
    files.audit["splits"]["train"]["duplicates"] = copies
    assert [f["level"] for f in found(files, "data")] == ([level] if level else [])


def test_flipped_labels_show_as_rows_that_the_model_contradicts(files):
    rows = [[0.03, False, f"news.jsonl:{i}"] for i in range(30)] + [[0.9, True, "news.jsonl:99"]] * 170
    files.evaluation["training"]["judged"]["rows"] = rows
    (finding,) = found(files, "labels", "alarm")
    assert (
        "of 200 training examples, 15 % carry a label to which the tuned model gives less than 20 %" in finding["text"]
    )
    assert "news.jsonl:0" in finding["text"]


def test_a_model_that_learnt_nothing_says_nothing_about_labels(files):
    """Five labels, scores around a fifth, one answer to nearly everything."""
    rows = [[0.17 + 0.001 * (i % 30), False, f"a:{i}"] for i in range(100)]
    useless(files)
    files.evaluation["training"]["judged"]["rows"] = rows + [[0.24, True, "b"]] * 35
    assert not found(files, "labels")
    # And by each of the two reasons alone: it is not sure of anything, ...
    files.evaluation["training"]["tuned"]["accuracy"] = figure(0.6, 0.05, 135)
    files.evaluation["tuned"]["accuracy"] = figure(0.6, 0.05, 120)
    files.evaluation["training"]["judged"]["rows"] = [[0.01, False, "a"]] * 30 + [[0.3, True, "b"]] * 105
    assert not found(files, "labels")
    # ... or it is sure, and no better than a constant answer.
    files.evaluation["training"]["judged"]["rows"] = sure = [[0.01, False, "a"]] * 30 + [[0.9, True, "b"]] * 105
    assert found(files, "labels", "alarm")
    files.evaluation["tuned"]["accuracy"] = figure(0.26, 0.08, 120)
    assert not found(files, "labels")
    files.evaluation["tuned"]["accuracy"] = figure(0.6, 0.05, 120)
    files.evaluation["training"]["judged"] = {"evaluator": "generation", "rows": sure}  # token F1, no probability
    assert not found(files, "labels")


@pytest.mark.parametrize(("labels", "limit"), [(2, 0.2), (3, 0.2), (5, 1 / 9), (50, 1 / 99)])
def test_what_a_doubted_label_is_given_hangs_on_how_many_there_are(files, labels, limit):
    one = files.evaluation["details"]["tuned"]["classification"]
    one["labels"] = [{"label": str(i), "support": 8} for i in range(labels)]
    one["confusion"] = [[8 * (i == j) for j in range(labels)] for i in range(labels)]
    for score, seen in ((0.98 * limit, True), (1.02 * limit, False)):
        rows = [[score, False, "a"]] * 30 + [[0.9, True, "b"]] * 170
        files.evaluation["training"]["judged"]["rows"] = rows
        assert bool(found(files, "labels", "alarm")) == seen


def useless(files):
    """Make the run one whose model answers "tech" to nearly everything, after nine steps."""
    names, supports = ("business", "entertainment", "politics", "sports", "tech"), (20, 22, 24, 29, 25)
    one = files.evaluation["details"]["tuned"]["classification"]
    one["labels"] = [{"label": name, "support": n} for name, n in zip(names, supports, strict=True)]
    one["confusion"] = [
        [0, 0, 0, 6 * (name == "sports"), n - 6 * (name == "sports")] for name, n in zip(names, supports, strict=True)
    ]
    files.evaluation["tuned"] = {"accuracy": figure(0.26, 0.08, 120), "macro_f1": figure(0.14, 0.06, 120)}
    files.evaluation["base"] = {"accuracy": figure(0.29, 0.08, 120), "macro_f1": figure(0.24, 0.08, 120)}
    files.evaluation["difference"] = {
        "accuracy": change(-0.03, 0.11, better=None, p=0.6),
        "macro_f1": change(-0.1, 0.095, better=False, p=0.014),
    }
    files.evaluation["training"]["tuned"] = {"accuracy": figure(0.26, 0.06, 135)}
    losses = [1.62, 1.60, 1.57, 1.61, 1.58, 1.615, 1.60, 1.58, 1.59]
    files.metrics = [{"step": i, "epoch": 0, "loss": loss, "learning_rate": 1e-3} for i, loss in enumerate(losses, 1)]


def test_a_useless_model_is_told_what_it_never_answers_and_why(files):
    useless(files)
    verdict = judge(files)
    assert verdict["headline"].startswith("Not shown to be better than its base, and worse in macro F1: accuracy ")
    assert "look at the constant answer, the classes and the training before" in verdict["headline"]
    (classes,) = found(files, "classes", "alarm")
    assert classes["text"] == (
        "Never answers “business”, “entertainment” and “politics”, the truth of 66 of 120 held-out examples; “tech” "
        "is its answer to 114."
    )
    (cause,) = found(files, "learning", "alarm")
    assert cause["text"] == (
        "The training loss hardly fell: from 1.597 to 1.590 in 9 steps. More steps or a higher learning rate (0.0002 "
        "now) are what to try first. Guessing evenly among 5 labels costs 1.609."
    )


def test_classes_too_many_for_a_confusion_matrix_are_read_from_their_rows(files):
    useless(files)
    one = files.evaluation["details"]["tuned"]["classification"]
    matrix = one.pop("confusion")
    for i, row in enumerate(one["labels"]):
        row["predicted"] = sum(truth[i] for truth in matrix)
    assert found(files, "baseline", "alarm")
    assert found(files, "classes", "alarm")[0]["text"].endswith("“tech” is its answer to 114.")
    assert found(files, "learning", "alarm")[0]["text"].endswith("Guessing evenly among 5 labels costs 1.609.")
    # Five labels: below 1/9 one is contradicted.
    files.evaluation["tuned"]["accuracy"] = files.evaluation["training"]["tuned"]["accuracy"] = figure(0.6, 0.05, 120)
    files.evaluation["training"]["judged"]["rows"] = [[0.15, False, "a"]] * 30 + [[0.9, True, "b"]] * 105
    assert not found(files, "labels")
    # With several labels an example, shares of the examples are not told by rows, and a label is yes or no.
    for side in ("base", "tuned", "difference"):
        figures = files.evaluation[side]
        files.evaluation[side] = {"subset_accuracy": figures["accuracy"], "macro_f1": figures["macro_f1"]}
    assert not found(files, "baseline")
    assert not found(files, "classes")
    assert found(files, "labels", "alarm")


def test_a_class_of_two_examples_that_is_never_answered_is_a_note(files):
    files.evaluation["details"]["tuned"]["classification"]["confusion"] = [[130, 9, 0], [6, 123, 0], [2, 0, 0]]
    (finding,) = found(files, "classes")
    assert finding["level"] == "note"
    assert "“sports”, the truth of 2 of 270" in finding["text"]


def test_a_loss_that_hardly_fell_is_no_matter_where_the_model_got_better(files):
    losses = [line for line in files.metrics if "loss" in line][:9]
    files.metrics = [line | {"loss": 1.6 - 0.01 * i} for i, line in enumerate(losses)]
    assert not found(files, "learning")
    files.evaluation["difference"]["accuracy"] = change(0.01, 0.03, better=None, p=0.5)
    (note,) = found(files, "learning")
    assert (note["level"], note["text"][:32]) == ("note", "The training loss hardly fell: f")
    for line in files.metrics[5:]:
        line["loss"] = 1.0
    assert not found(files, "learning")


def test_hard_examples_are_no_flipped_labels(files):
    files.evaluation["training"]["judged"]["rows"] = [[0.35, False, "a"]] * 80 + [[0.6, True, "b"]] * 120
    assert not found(files, "labels")


def test_doing_worse_on_training_examples_points_at_their_labels(files):
    files.evaluation["training"]["tuned"]["accuracy"] = figure(0.75, 0.05, 200)
    (finding,) = found(files, "labels", "alarm")
    assert finding["text"].startswith("Training labels may be wrong. The model does worse on what it was trained on")


def test_scores_that_are_no_probabilities_are_not_read_as_such(files):
    files.evaluation["training"]["judged"]["rows"] = [[-3.0, False, "a"]] * 80 + [[-0.1, True, "b"]] * 120
    assert not found(files, "labels")


# Slices and probes


def slice_of(value, examples, tuned, small=False, difference=0.2):
    own = change(difference, better=difference > 0)
    return {"value": value, "examples": examples, "small": small} | {
        "base": {"accuracy": figure(0.6, 0.05)},
        "tuned": {"accuracy": figure(tuned, 0.05)},
        "difference": {"accuracy": own},
    }


def test_the_worst_slice_is_named_with_its_gap_and_what_the_base_had(files):
    gap = {"value": -0.25, "low": -0.35, "high": -0.14, "p": 0.004, "p_adjusted": 0.008}
    files.evaluation["slices"] = {
        "channel": {
            "metric": "accuracy",
            "worst": "phone",
            "slices": [slice_of("phone", 90, 0.7), slice_of("mail", 300, 0.95), slice_of("fax", 7, 0.9, small=True)],
            "gap": gap,
            "base_gap": {"value": -0.2, "low": -0.3, "high": -0.1, "p": 0.01},
        }
    }
    (alarm,) = found(files, "slices", "alarm")
    assert alarm["text"].startswith("Where channel is “phone” (90 examples), the tuned model does worse than elsewhere")
    assert "The base has such a gap as well" in alarm["text"]
    (note,) = found(files, "slices", "note")
    assert "“fax”" in note["text"]
    gap |= {"low": -0.3, "high": 0.02, "p": 0.08, "p_adjusted": 0.16}
    assert not found(files, "slices", "alarm")


def test_a_slice_that_got_worse_than_the_base_is_an_alarm_after_correction(files):
    worse = slice_of("phone", 90, 0.5, difference=-0.1)
    column = {"metric": "accuracy", "worst": None, "gap": None, "slices": [worse, slice_of("mail", 300, 0.95)]}
    files.evaluation["slices"] = {"channel": column}
    assert "worse than its base" in found(files, "slices", "alarm")[0]["text"]
    for one in column["slices"]:
        one["difference"]["accuracy"]["p"] = 0.04  # the smaller of two at 0.04 counts as 0.08
    assert not found(files, "slices", "alarm")


def test_a_small_slice_is_neither_an_alarm_nor_one_test_more(files):
    small = slice_of("fax", 7, 0.5, small=True, difference=-0.4)
    worse = slice_of("phone", 90, 0.5, difference=-0.1)
    column = {"metric": "accuracy", "worst": None, "gap": None, "slices": [small]}
    files.evaluation["slices"] = {"channel": column}
    assert not found(files, "slices", "alarm")
    column["slices"] = [worse] + [small] * 100
    (alarm,) = found(files, "slices", "alarm")
    assert alarm["figures"]["p_adjusted"] == worse["difference"]["accuracy"]["p"]


def column(slices, worst, **more):
    own = next((one.get("gap") for one in slices if one["value"] == worst), None)
    gap = own and own | {"p": own["p_adjusted"]}
    return {"metric": "accuracy", "worst": worst, "slices": slices, "gap": gap, "base_gap": None} | more


def with_gap(value, gap, half=0.05, p=0.001, examples=90):
    ends = {"value": gap, "low": gap - half, "high": gap + half}
    return slice_of(value, examples, 0.9 + gap) | {"gap": ends | {"p": p / 4, "p_adjusted": p}}


def test_every_slice_that_is_behind_is_named_not_only_the_worst(files):
    """The worst is uncertain; another one is surely behind, one hardly, one ahead."""
    slices = [
        with_gap("fax", -0.41, half=0.45, p=0.2),
        with_gap("hardly", -0.03, half=0.02),
        with_gap("phone", -0.4, p=3e-12),
        with_gap("mail", 0.3, p=1e-9),
        with_gap("late", -0.2, p=0.06),
        slice_of("letter", 90, 0.5) | {"gap": None},
    ]
    files.evaluation["slices"] = {"channel": column(slices, "fax")}
    (alarm,) = found(files, "slices", "alarm")
    assert alarm["text"].startswith("Where channel is “phone” (90 examples), the tuned model does worse than elsewhere")
    assert alarm["text"].endswith("against the other examples, adjusted p < 0.001.")
    (note,) = found(files, "slices", "note")
    assert "“hardly”" in note["text"]
    files.evaluation["higher_is_better"]["accuracy"] = False
    (alarm,) = found(files, "slices")
    assert "“mail”" in alarm["text"]


def test_of_many_slices_behind_the_worst_come_first_and_the_rest_are_counted(files):
    slices = [with_gap(f"s{i}", -0.1 - 0.02 * i) for i in range(8)]
    files.evaluation["slices"] = {"channel": column(slices, "s6")}
    alarms = found(files, "slices", "alarm")
    assert [alarm["figures"].get("value") for alarm in alarms] == ["s6", "s7", "s5", "s4", "s3", None]
    assert alarms[-1]["text"] == "By channel, 3 more slices are behind the other examples, beyond chance."
    for one in slices[:3]:
        one["gap"] |= {"value": -0.03, "low": -0.05, "high": -0.01}
    assert found(files, "slices")[-1]["level"] == "note"


def test_the_only_slice_that_can_be_judged_is_not_called_worse_where_it_is_ahead(files):
    files.evaluation["slices"] = {"channel": column([with_gap("mail", 0.3)], "mail")}
    assert not found(files, "slices")


def test_a_slice_that_got_hardly_worse_than_the_base_is_a_note(files):
    one = slice_of("phone", 9000, 0.9)
    one["difference"]["accuracy"] = change(-0.04, 0.005, better=False, p=1e-6)
    files.evaluation["slices"] = {"channel": column([one], None)}
    (finding,) = found(files, "slices")
    assert (finding["level"], "worse than its base" in finding["text"]) == ("note", True)
    one["difference"]["accuracy"] = change(-0.06, 0.005, better=False, p=1e-6)
    assert found(files, "slices")[0]["level"] == "alarm"


@pytest.mark.parametrize("kind", ["forgetting", "memorisation", "refusal"])
def test_every_probe_that_went_wrong_is_an_alarm_of_its_kind(tmp_path, kind):
    files = RunFiles.read(write_run(tmp_path / "run", everything()))
    assert found(files, kind, "alarm")
    files.evaluation["probes"] = [probe for probe in files.evaluation["probes"] if probe["kind"] != kind]
    assert not found(files, kind)


def test_forgetting_within_chance_is_good_news(files):
    probe = copy.deepcopy(next(p for p in everything()["evaluation"]["probes"] if p["kind"] == "forgetting"))
    probe |= {"data": "general.txt", "difference": {"perplexity": change(0.3, 0.6, better=None, p=0.4)}}
    files.evaluation["probes"] = [probe]
    assert found(files, "forgetting")[0]["level"] == "good"


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (change(0.3, 0.8, better=None, p=0.4, detectable=1.2), "+0.3 (95 % interval −0.5 to +1.1). These examples"),
        ({"value": 0.3, "low": None, "high": None, "p": None, "better": None, "detectable": None}, "+0.300."),
    ],
)
def test_too_few_examples_to_see_forgetting_are_no_good_news(files, difference, text):
    probe = copy.deepcopy(next(p for p in everything()["evaluation"]["probes"] if p["kind"] == "forgetting"))
    files.evaluation["probes"] = [probe | {"data": "general.txt", "difference": {"perplexity": difference}}]
    (finding,) = found(files, "forgetting")
    assert finding["level"] == "note"
    assert finding["text"].startswith("Too few examples to tell whether it forgot, on general.txt (300 examples): perp")
    assert f"a difference of {text}" in finding["text"]
    assert ("a true difference of 1.200 or more" in finding["text"]) == (difference["detectable"] is not None)


def test_an_interval_that_leaves_room_for_a_lower_loss_alone_is_good_news(files):
    probe = copy.deepcopy(next(p for p in everything()["evaluation"]["probes"] if p["kind"] == "forgetting"))
    files.evaluation["probes"] = [probe | {"difference": {"perplexity": change(-3.0, 3.5, better=None, p=0.1)}}]
    assert found(files, "forgetting")[0]["level"] == "good"
    probe["base"], probe["tuned"] = {"accuracy": figure(0.5)}, {"accuracy": figure(0.47)}
    files.evaluation["probes"] = [probe | {"difference": {"accuracy": change(-0.03, 0.035, better=None, p=0.1)}}]
    assert found(files, "forgetting")[0]["level"] == "note"


# Several measures at once


def test_another_metric_is_called_worse_after_correction_over_all_of_them(files):
    names = ["f1", "precision", "recall"]
    for name in names:
        files.evaluation["base"][name] = files.evaluation["tuned"][name] = figure(0.5)
        files.evaluation["difference"][name] = change(0.0, better=None, p=0.9)
    files.evaluation["difference"]["f1"] = change(-0.05, better=False, p=0.02)  # of five; 0.002 · 5 is the first
    files.evaluation["difference"]["macro_f1"] = change(0.3, p=0.9)
    assert not found(files, "worse")
    files.evaluation["difference"]["f1"]["p"] = 0.01
    (finding,) = found(files, "worse")
    assert finding["text"].endswith("adjusted p = 0.04.")
    assert finding["figures"]["p_adjusted"] == pytest.approx(0.04)


def robustness(names, p):
    """Probes with four metrics each, of which the first got worse."""
    return [
        {"kind": "robustness", "name": name, "data": "test", "examples": 400}
        | {"base": {}, "tuned": {metric: figure(0.8) for metric in "abcd"}, "difference": {}, "details": {}}
        | {"against": {m: change(-0.08, better=False if m == "a" else None, p=p if m == "a" else 0.9) for m in "abcd"}}
        for name in names
    ]


def test_disturbed_input_is_judged_after_correction_over_all_disturbances(files):
    files.evaluation["probes"] = robustness(["typos"], 0.012)
    assert found(files, "robustness")[0]["text"].endswith("against undisturbed input, adjusted p = 0.048.")
    files.evaluation["probes"] = robustness(["typos", "case"], 0.012)
    assert not found(files, "robustness")


def test_many_measures_do_not_hide_what_no_resample_contradicts(files):
    # Of 40 measures, the least p of 1,000 resamples, 0.002, would count as 0.08.
    files.evaluation["probes"] = robustness([f"disturbance {i}" for i in range(10)], 0.002)
    assert len(found(files, "robustness")) == 10
    files.recipe["evaluation"] = {"resamples": 10_000}  # which could have said so itself
    assert not found(files, "robustness")


@pytest.mark.parametrize(("kind", "key"), [("refusal", "difference"), ("memorisation", "against")])
def test_refusals_and_what_was_learnt_by_heart_are_judged_after_correction(tmp_path, kind, key):
    files = RunFiles.read(write_run(tmp_path / "run", everything()))
    (probe,) = [probe for probe in files.evaluation["probes"] if probe["kind"] == kind]
    (metric,) = probe[key]
    probe[key][metric]["p"] = 0.03
    assert found(files, kind)[0]["figures"]["p_adjusted"] == 0.03
    for side in ("base", "tuned"):
        probe[side]["other"] = figure(0.5)
    probe[key]["other"] = change(0.0, better=None, p=0.9)
    assert not found(files, kind)


def test_false_confidence_is_an_alarm_and_modesty_a_note(files):
    files.evaluation["tuned"]["overconfidence"] = figure(0.2, 0.02)
    files.evaluation["tuned"]["ece_after_temperature"] = {"value": 0.012, "low": None, "high": None, "n": 400}
    (alarm,) = found(files, "calibration", "alarm")
    assert alarm["text"].startswith(
        "It is too sure of itself: its confidence is 20 points too high on average (mean confidence minus accuracy "
        "+0.200 (95 % interval +0.180 to +0.220)). Dividing its logits by 1.20"
    )
    files.evaluation["tuned"]["overconfidence"] = figure(0.16, 0.02)
    assert not found(files, "calibration", "alarm")
    files.evaluation["tuned"]["overconfidence"] = figure(-0.2, 0.02)
    (note,) = found(files, "calibration")
    assert note["level"] == "note"
    assert note["text"].startswith("It is less sure than it could be: its confidence is 20 points too low")


@pytest.mark.parametrize(
    ("temperature", "over", "after", "said"),
    [
        (1.2, 0.2, 0.012, True),
        (0.8, -0.2, 0.012, True),
        (0.8, 0.2, 0.012, False),  # it would make the model surer still
        (1.2, -0.2, 0.012, False),
        (1.2, 0.2, 0.05, False),  # worse than without
        (1.2, 0.2, None, False),
    ],
)
def test_a_temperature_is_advised_where_it_helps(files, temperature, over, after, said):
    files.evaluation["tuned"]["overconfidence"] = figure(over, 0.02)
    files.evaluation["details"]["tuned"]["calibration"]["temperature"] = temperature
    if after is not None:
        files.evaluation["tuned"]["ece_after_temperature"] = {"value": after, "low": None, "high": None, "n": 400}
    (finding,) = found(files, "calibration")
    assert ("Dividing its logits" in finding["text"]) == said
    if said:
        assert finding["text"].endswith(
            f" Dividing its logits by {temperature:.2f} (fitted on validation) would bring the calibration error from "
            "0.030 to 0.012."
        )


@pytest.mark.parametrize(("value", "half"), [(0.06, 0.02), (-0.06, 0.02), (0.0, 0.01), (0.3, None)])
def test_confidence_that_chance_may_explain_is_not_mentioned(files, value, half):
    own = figure(value, half) if half else {"value": value, "low": None, "high": None, "n": 1}
    files.evaluation["tuned"] |= {"overconfidence": own, "calibration_error": figure(0.3, 0.01)}
    assert not found(files, "calibration")


# Files


def test_an_unfinished_run_says_what_is_missing(tmp_path):
    write_run(tmp_path / "run", sound() | {"evaluation": None, "training": None})
    with pytest.raises(RunError, match=r"not finished: it has no training\.json, evaluation\.json"):
        verdict_of(tmp_path / "run")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"holds no recipe\.yaml"):
        verdict_of(tmp_path)


def test_a_run_of_an_older_version_is_judged(tmp_path):
    content = sound()
    for key in ("higher_is_better", "paired", "training", "slices", "probes"):
        content["evaluation"].pop(key, None)
    for line in content["metrics"]:
        line.pop("training_loss", None)
    assert verdict_of(write_run(tmp_path / "run", content))["level"] == "good"


def test_the_verdict_is_a_function_of_the_files_and_is_written_beside_them(tmp_path):
    folder = write_run(tmp_path / "run", everything())
    verdict = conclude(RunDirectory(folder))
    # Through JSON, which escapes what is no text.
    assert json.loads((folder / "verdict.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(verdict_of(folder))
    )
    assert verdict["headline"].count("look at") == 1
    assert (folder / "report.html").is_file()


# Words


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [(0.93, 0.03, "0.930"), (0.93, 0.2, "0.93"), (1234.5, 30, "1,234"), (0.0, None, "0.000"), (-0.0001, None, "0.000")],
)
def test_figures_have_the_digits_that_their_interval_supports(value, half, text):
    own = figure(value, half) if half else {"value": value, "low": None, "high": None}
    assert plain(own) == text


@pytest.mark.parametrize(
    ("value", "text"), [(70.0, "+70.0"), (-12.34, "−12.3"), (1234.5, "+1,234"), (1.5972, "+1.597"), (99.96, "+100.0")]
)
def test_figures_without_an_interval_have_three_digits_or_three_decimals(value, text):
    assert plain({"value": value, "low": None, "high": None}, sign=True) == text


def test_one_example_is_not_several(files):
    for side in ("base", "tuned"):
        files.evaluation[side]["accuracy"] = {"value": 1.0, "low": None, "high": None, "n": 1}
    assert "1 distinct example carries no interval." in found(files, "data")[0]["text"]
    files.evaluation["tuned"]["accuracy"] |= {"low": 0.2, "high": 1.0}
    assert "1 distinct example leaves accuracy anywhere" in found(files, "data")[0]["text"]


def test_negative_numbers_have_a_minus_and_nothing_has_none():
    assert digits(-0.5, 2) == "−0.50"
    assert digits(-0.001, 2) == "0.00"
    assert with_interval(change(-0.28)) == "−0.280 (95 % interval −0.310 to −0.250)"
    assert decimals({"low": 1.0, "high": 1.0}) == 3


def test_an_interval_that_leaves_zero_out_never_ends_at_it():
    assert interval({"value": -0.1, "low": -0.19, "high": -0.004}) == "−0.190 to −0.004"
    assert interval({"value": 0.04, "low": 0.00005, "high": 0.083}, sign=True) == "+0.00005 to +0.08300"
    assert interval({"value": 0.04, "low": 1e-12, "high": 0.8}) == "0.000000 to 0.800000"
    assert interval({"value": 0.04, "low": -0.0004, "high": 0.83}) == "0.00 to 0.83"


def test_what_has_no_interval_says_why():
    figures = {"accuracy": {"n": 3}, "ece": {"n": 100}, "loss": {"n": 100}}
    assert no_interval("accuracy", figures) == "too few examples to tell"
    assert no_interval("loss", figures) == no_interval("ece", figures) == "no interval"
    assert no_interval("ece", figures | {"overconfidence": {"n": 100}}) == "no interval (see overconfidence)"


def test_shares_are_read_as_percent():
    assert (percent(0.784), percent(0.0324), percent(0.0)) == ("78 %", "3.2 %", "0 %")


def test_two_values_that_are_set_against_each_other_have_the_same_decimals():
    """Else 1.67 against 2.2 would be said to differ by 0.57."""
    tuned, base = {"value": 1.667, "low": 1.311, "high": 2.195}, {"value": 2.239, "low": 1.768, "high": 2.976}
    assert against(tuned, base) == "1.67 against 2.24"
    assert against({"value": None}, base) == "– against 2.2"
