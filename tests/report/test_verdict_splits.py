"""Splits that differ lead the verdict where the model fails on them, and what follows from it stands behind."""

import pytest
from report_samples import LABELS, baseline, change, figure
from verdicts import put

from ftengine_builtins.audits.split_shift import EXPLAINED


def shift(split="test", **more):
    """Return a change: an audit found that a split's rows come from elsewhere."""
    finding = {"kind": "splits", "level": "note", "text": "Test rows come from elsewhere than training.",
               "brief": "test rows come from elsewhere", "source": "split-shift",
               "figures": {"split": split, "auc": 0.92, "low": 0.88, "high": 0.96}} | more  # fmt: skip
    return put("audit.findings", [finding])


def behind(held_out, gap):
    """Return changes: the tuned model's accuracy on held-out rows, and by how much it is better on training rows."""
    return [
        put("evaluation.tuned.accuracy", figure(held_out)),
        put("evaluation.training.gap", {"accuracy": change(gap, half=0.05)}),
    ]


def test_where_the_model_fails_on_rows_from_elsewhere_that_leads(verdict):
    told = verdict(shift(), *behind(0.55, 0.41))
    assert [one.source for one in told.lead] == ["split-shift", "better-than-base"]
    assert (told.level, told.findings[0].kind, told.findings[0].level) == ("alarm", "splits", "alarm")
    (over,) = [one for one in told.findings if one.source == "generalisation-gap"]
    assert (over.level, over.explained_by) == ("alarm", "split-shift")


@pytest.mark.parametrize("split", ["test", "validation"])
def test_where_the_model_copes_it_is_a_note(verdict, split):
    told = verdict(shift(split), *behind(0.93, 0.03))
    assert told.level == "good"
    (note,) = [one for one in told.findings if one.source == "split-shift"]
    assert note.level == "note"


def test_a_split_that_nothing_is_measured_on_is_no_cause(verdict):
    told = verdict(shift("validation"), *behind(0.55, 0.41))
    assert told.findings[0].source == "generalisation-gap"


@pytest.mark.parametrize(("by", "words"), [("group", "new groups"), ("time", "later rows")])
def test_a_shift_by_group_or_time_is_reported_as_harder_rows(verdict, by, words):
    apart = shift(figures={"split": "test", "auc": 0.92, "by": by})
    told = verdict(apart, *behind(0.55, 0.41))
    assert (told.lead[0].source, told.lead[0].level) == ("split-shift", "alarm")
    assert words in told.headline.lower()
    assert verdict(apart, *behind(0.93, 0.03)).level == "good"


MISPLACED = {"misplaced-labels": {"offset": 1}, "split-shift": {"cues": []},
             "exchanged-roles": {"auc": 0.1, "exchanged": "test"}}  # fmt: skip


@pytest.mark.parametrize("source", MISPLACED)
@pytest.mark.parametrize(
    ("split", "fails", "level"),
    [("test", True, "alarm"), ("train", True, "alarm"), ("validation", True, "note"), ("test", False, "note"),
     ("train", False, "note")],
)  # fmt: skip
def test_cues_and_misplaced_labels_lead_where_the_model_fails(verdict, source, split, fails, level):
    noise = {"kind": "labels", "level": "alarm", "text": "Look.", "source": "label-noise", "explains": ("quality",)}
    cause = {"kind": "splits", "level": "alarm", "text": "Check.", "brief": "check", "source": source,
             "explains": EXPLAINED, "figures": {"split": split, **MISPLACED[source]}}  # fmt: skip
    figures = behind(0.55, 0.41) if fails else behind(0.93, 0.03)
    told = verdict(put("audit.findings", [*[noise] * fails, cause]), *figures)
    assert [one.level for one in told.findings if one.source == source] == [level]
    leads = level == "alarm"
    assert (told.findings[0].source == source) == leads
    assert not fails or any(one.explained_by == source for one in told.findings) == leads
    assert fails or told.level == "good"


@pytest.mark.parametrize(
    ("source", "figures"), [("split-shift", {"cues": []}), ("misplaced-labels", {"rule": True, "own": 0.8})]
)
def test_a_cue_or_another_rule_leads_where_it_costs_anything_beyond_chance(verdict, source, figures):
    cue = shift(source=source, level="alarm", explains=EXPLAINED, figures={"split": "test", **figures})
    assert verdict(cue, *behind(0.88, 0.08)).findings[0].source == source


@pytest.mark.parametrize("figures", [{"default": 0.0}, {"left_out": "train"}])
def test_a_default_number_or_a_label_that_was_left_out_leads_however_good_the_model_is(verdict, figures):
    cause = shift(source="split-support", level="alarm", explains=EXPLAINED, figures={"split": "test", **figures})
    assert verdict(cause, *behind(0.93, 0.03)).findings[0].source == "split-support"


def of_base(name, seen, held):
    """Return a change: another metric of the base model on training and on held-out rows."""

    def spoil(files):
        evaluation = files["evaluation"]
        metric = {"label": name, "higher_is_better": True, "evaluator": "similarity"}
        evaluation["metrics"] = evaluation["metrics"] | {name: metric}
        for side, values in ((evaluation["training"], (seen, 0.6)), (evaluation, (held, 0.6))):
            side["base"] |= {name: figure(values[0], 0.1)}
            side["tuned"] |= {name: figure(values[1], 0.1)}

    return spoil


@pytest.mark.parametrize(
    ("seen", "held", "level"),
    [(0.1, 0.6, "alarm"), (0.1, 0.2, "note"), (0.45, 0.9, "note"), (0.45, 0.6, None), (0.8, 0.6, None)],
)
def test_negatives_that_the_base_finds_nearer_lead_where_only_training_has_them(verdict, seen, held, level):
    told = verdict(of_base("triplet_accuracy", seen, held))
    negatives = [one for one in told.findings if one.source == "near-negatives"]
    assert [one.level for one in negatives] == [level] * (level is not None)
    assert (told.findings[0].source == "near-negatives") == (level == "alarm")


@pytest.mark.parametrize(
    ("seen", "held", "named"),
    [
        (-0.77, 0.79, True),
        (0.8, -0.6, True),
        (-0.7, -0.8, True),
        (0.7, 0.79, False),
        (-0.1, 0.5, False),
        (-0.1, -0.15, False),
    ],
)
def test_a_base_whose_scores_run_the_other_way_in_training_leads(verdict, seen, held, named):
    told = verdict(of_base("spearman", seen, held), *behind(0.55, 0.41))
    assert (told.findings[0].source == "opposite-scores") == named
    assert any(one.explained_by == "opposite-scores" for one in told.findings) == named


def test_exchanged_sides_lead_where_no_gain_shows_that_they_are_not(verdict):
    cause = shift(source="exchanged-roles", level="alarm", explains=EXPLAINED, figures={"split": "test", "auc": 0.1})
    told = verdict(
        cause, *behind(0.93, 0.03), put("evaluation.difference.accuracy", change(0.01, half=0.05, better=None))
    )
    assert (told.findings[0].source, told.findings[0].level) == ("exchanged-roles", "alarm")


def confused(cells):
    """Return a change: the tuned model's answers on held-out rows, labels by answers."""
    return put("evaluation.details.tuned.classification.confusion", cells)


SWAPPED = [[3, 90, 2], [85, 1, 4], [2, 3, 90]]


@pytest.mark.parametrize(
    ("cells", "accuracy", "swapped"),
    [(SWAPPED, 0.4, True), (SWAPPED, 0.93, False), ([[60, 33, 2], [30, 56, 4], [2, 3, 90]], 0.4, False),
     ([[10, 83, 2], [2, 84, 4], [2, 3, 90]], 0.4, False)],
    ids=["swapped", "no better on training rows", "hard to tell apart", "one is preferred"],
)  # fmt: skip
def test_classes_that_the_model_answers_for_each_other_are_swapped(verdict, cells, accuracy, swapped):
    result = verdict(confused(cells), *behind(accuracy, 0.5))
    found = [finding for finding in result.findings if finding.source == "swapped-classes"]
    assert len(found) == swapped == (result.findings[0].source == "swapped-classes")
    if swapped:
        assert {tuple(pair) for pair in found[0].figures["swapped"]} == {tuple(LABELS[:2]), tuple(LABELS[1::-1])}
        assert (found[0].figures["fit"], found[0].figures["own"], found[0].figures["n"]) == (175, 4, 185)


INVERTED = """5 0 0 0 0 6 1 0 20 3/0 23 0 0 0 10 0 0 0 3/0 23 0 0 10 0 0 0 0 0/0 0 0 0 7 2 5 0 23 0/0 6 20 0 0 8 0 0 0 0
/0 0 5 0 0 18 1 0 10 1/0 5 0 0 0 30 0 1 0 0/0 6 2 0 13 12 0 0 1 0/0 2 0 0 0 1 0 0 30 0/0 0 1 0 1 5 6 0 22 2"""
"""Ten digits as a ResNet answers them in inverted pictures: right of the upright ones."""
RENUMBERED = "78 0 3 2 0/0 66 3 0 3/0 0 1 101 0/2 2 1 1 62/0 0 0 0 0"
"""Codes that were given to the test file by itself, which has no class 2."""
BIASED = "78 0 3 2 0/0 66 3 0 3/0 0 1 101 0/2 2 1 61 1/0 0 0 0 0"


@pytest.mark.parametrize(
    ("cells", "swapped"), [(INVERTED, None), (RENUMBERED, [("2", "3"), ("3", "4")]), (BIASED, None)],
    ids=["other inputs", "codes given per file", "one class is answered for another"],
)  # fmt: skip
def test_a_relabelling_has_to_explain_all_classes(verdict, cells, swapped):
    counts = [[int(count) for count in row.split()] for row in cells.split("/")]

    def named(files):
        facts = files["evaluation"]["details"]["tuned"]["classification"]
        facts["labels"] = [facts["labels"][0] | {"label": str(i)} for i in range(len(counts))]

    nll = put("evaluation.tuned.nll", figure(3.0))
    result = verdict(confused(counts), named, nll, *behind(0.4, 0.5))
    found = [finding for finding in result.findings if finding.source == "swapped-classes"]
    assert [[tuple(pair) for pair in finding.figures["swapped"]] for finding in found] == ([swapped] if swapped else [])
    assert result.findings[0].source == ("swapped-classes" if swapped else "validation-and-test")


@pytest.mark.parametrize(("accuracy", "alarm"), [(0.4, True), (0.93, False)])
def test_labels_answered_far_worse_than_in_validation(verdict, accuracy, alarm):
    """By what a label's loss is; that of validation may be weighted, so training rows are compared as well."""
    nll = put("evaluation.tuned.nll", figure(3.0))
    result = verdict(nll, *behind(accuracy, 0.5))
    assert any(one.source == "validation-and-test" for one in result.findings) == alarm


@pytest.mark.parametrize(("held_out", "gap", "level"), [(0.7, 0.2, "alarm"), (0.93, 0.0, "note")])
def test_answer_cues_lead_where_training_pairs_are_ranked_better(verdict, held_out, gap, level):
    cue = {"kind": "splits", "level": "alarm", "text": "Every chosen answer begins so.", "source": "answer-cues",
           "figures": {"split": "test", "words": "Certainly!", "held_out": 0.0}, "explains": EXPLAINED}  # fmt: skip
    result = verdict(put("audit.findings", [cue]), *behind(held_out, gap))
    assert [one.level for one in result.findings if one.source == "answer-cues"] == [level]
    assert (result.findings[0].source == "answer-cues") == (level == "alarm")


@pytest.mark.parametrize("source", ["surface-features", "split-shift"])
def test_how_texts_were_written_leads_before_words_that_follow_from_it(verdict, source):
    written = {"kind": "splits", "level": "note", "text": "Training texts are in lower case.", "brief": "lower case",
               "source": "surface-features", "figures": {"split": "test", "what": "texts"}}  # fmt: skip
    both = [
        dict(shift_finding := {**written, "source": "split-shift", "figures": {"split": "test", "auc": 1.0}}),
        written,
    ]
    result = verdict(
        put("audit.findings", both if source == "surface-features" else [shift_finding]), *behind(0.55, 0.41)
    )
    assert (result.findings[0].source, result.findings[0].level) == (source, "alarm")


@pytest.mark.parametrize("composition", [True, False])
def test_what_rows_are_made_of_leads_however_good_the_figures_are(verdict, composition):
    """A prefix that test rows lack; which words tell the files apart follows from it."""
    made = {"kind": "splits", "level": "alarm" if composition else "note", "text": "All begin so.", "brief": "so",
            "source": "surface-features", "figures": {"split": "test", "what": "prompts", "composition": composition},
            "explains": EXPLAINED if composition else ()}  # fmt: skip
    words = ["helpful", "assistant"]
    shift_finding = {**made, "level": "note", "source": "split-shift", "explains": (),
                     "figures": {"split": "test", "auc": 1.0, "training_words": words}}  # fmt: skip
    result = verdict(put("audit.findings", [shift_finding, made]), *behind(0.93, 0.0))
    levels = {one.source: one.level for one in result.findings if one.source in ("surface-features", "split-shift")}
    assert levels == {"surface-features": "alarm" if composition else "note", "split-shift": "note"}
    assert (result.level == "alarm") == composition
    result = verdict(put("audit.findings", [shift_finding, made]), *behind(0.55, 0.41))
    assert (result.findings[0].source, result.findings[0].level) == ("surface-features", "alarm")


@pytest.mark.parametrize(("noise", "block"), [(True, {}), (False, {}), (False, {"first": 20, "last": 60})])
def test_labels_that_slipped_in_training_stay_an_alarm_in_a_block_or_where_many_look_wrong(verdict, noise, block):
    slip = {"kind": "splits", "level": "alarm", "text": "Slipped.", "source": "misplaced-labels", "explains": EXPLAINED,
            "figures": {"split": "train", "offset": 1, **block}}  # fmt: skip
    wrong = {"kind": "labels", "level": "alarm", "text": "Look.", "source": "label-noise", "explains": ("quality",)}
    result = verdict(put("audit.findings", [slip, wrong] if noise else [slip]), *behind(0.93, 0.03))
    (found,) = [one for one in result.findings if one.source == "misplaced-labels"]
    assert found.level == ("alarm" if noise or block else "note")
    assert (result.findings[0] == found) == (noise or bool(block))


@pytest.mark.parametrize(
    ("cells", "doubles"),
    [([[130, 7, 3], [125, 2, 3], [2, 8, 120]], {1: 0}), ([[130, 7, 3], [125, 2, 3], [100, 2, 28]], {})],
    ids=["two names of one class", "one answer to many"],
)
def test_a_class_that_is_answered_as_another_may_be_that_one(verdict, cells, doubles):
    given = [sum(column) for column in zip(*cells, strict=True)]
    classes = [[name, sum(row), n] for name, row, n in zip(LABELS, cells, given, strict=True)]
    counts = put("facts.labels", {"kind": "single", "names": LABELS, "counts": [140, 130, 130]})
    never = put("evaluation.details.tuned.classification.baseline.classes", classes)
    result = verdict(counts, never, confused(cells), *behind(0.6, 0.05))
    (found,) = [one for one in result.findings if one.source == "unanswered-classes"]
    assert found.figures["doubles"] == {LABELS[i]: LABELS[j] for i, j in doubles.items()}


def answered(rows, counts, **recipe):
    """Return a change: counts of answers, labels by answers, training rows of each label, and options."""

    def spoil(files):
        evaluation, total = files["evaluation"], sum(map(sum, rows))
        facts = evaluation["details"]["tuned"]["classification"]
        facts |= {"confusion": rows, "baseline": baseline(rows)}
        evaluation["tuned"]["accuracy"] = figure(sum(rows[i][i] for i in range(3)) / total, n=total)
        files["facts"]["labels"]["counts"] = counts
        for path, value in recipe.items():
            files["recipe"][path] |= value

    return spoil


ALL_ONE = [[130, 0, 0], [130, 0, 0], [140, 0, 0]]
LEARNT = [[125, 3, 2], [2, 126, 2], [3, 2, 135]]
EVEN, SHIFTED = [540, 530, 530], [1120, 240, 240]


@pytest.mark.parametrize(
    ("rows", "counts", "recipe", "leads"),
    [(ALL_ONE, SHIFTED, {}, True), (LEARNT, SHIFTED, {}, False), (ALL_ONE, EVEN, {}, False),
     ([[0, 0, 0], [260, 0, 0], [140, 0, 0]], SHIFTED, {}, True),
     ([[0, 0, 0], [260, 0, 0], [140, 0, 0]], [1120, 480, 0], {}, False), (ALL_ONE, [30, 10, 10], {}, True),
     (ALL_ONE, [5, 3, 2], {}, False),
     (ALL_ONE, SHIFTED, {"train": {"sampling": "balanced"}}, False),
     (ALL_ONE, SHIFTED, {"task": {"class_weights": "balanced"}}, False)],
    ids=["filled in", "learnt all the same", "even", "not in the test split", "called otherwise there", "few rows",
         "may be chance", "sampled evenly", "weighted evenly"],
)  # fmt: skip
def test_a_label_that_training_has_too_much_of_leads_where_it_is_answered_too_often(
    verdict, rows, counts, recipe, leads
):
    far = put("evaluation.tuned.loss", figure(2.2))  # of validation about 0.2: the test split would be blamed
    result = verdict(answered(rows, counts, **recipe), far)
    found = [finding for finding in result.findings if finding.source == "label-shares"]
    assert len(found) == leads == (result.findings[0].source == "label-shares")
    if leads:
        figures = found[0].figures
        assert (figures["label"], figures["given"], figures["total"]) == (LABELS[0], 400, 400)
        assert (figures["trained"], figures["rows"]) == (counts[0], sum(counts))
    assert any(finding.source == "validation-and-test" for finding in result.findings) != leads


MOSTLY_ONE = [[130, 0, 0], [60, 70, 0], [40, 0, 100]]
TWO_UNLEARNT = [[128, 2, 0], [4, 126, 0], [2, 138, 0]]


@pytest.mark.parametrize(
    ("rows", "counts", "weights", "leads"),
    [(ALL_ONE, EVEN, {LABELS[0]: 60}, True), (MOSTLY_ONE, EVEN, {LABELS[0]: 60}, True),
     (TWO_UNLEARNT, EVEN, {LABELS[0]: 60}, True), (LEARNT, EVEN, {LABELS[0]: 60}, False),
     (ALL_ONE, EVEN, {LABELS[0]: 4}, False), (ALL_ONE, EVEN, {LABELS[1]: 60}, False),
     (ALL_ONE, [10, 790, 800], {LABELS[0]: 60}, False), (ALL_ONE, EVEN, "balanced", False)],
    ids=["always", "often", "others unlearnt", "learnt all the same", "hardly heavier", "another one", "makes up",
         "balanced"],
)  # fmt: skip
def test_weights_with_which_one_label_is_learnt_alone_lead(verdict, rows, counts, weights, leads):
    result = verdict(answered(rows, counts, task={"class_weights": weights}))
    found = [finding for finding in result.findings if finding.source == "class-weights"]
    assert len(found) == leads == (result.findings[0].source == "class-weights")
    assert not leads or (found[0].figures["label"], found[0].figures["weights"][LABELS[0]]) == (LABELS[0], 60)


@pytest.mark.parametrize(("trained", "scarce"), [([180, 4, 170], True), ([140, 90, 120], False)])
def test_a_class_that_training_hardly_has_and_the_measured_split_has_asks_for_a_random_sample(verdict, trained, scarce):
    cells = [[130, 7, 3], [70, 2, 58], [2, 8, 120]]
    classes = [[name, sum(row), sum(of)] for name, row, of in zip(LABELS, cells, zip(*cells, strict=True), strict=True)]
    counts = put("facts.labels", {"kind": "single", "names": LABELS, "counts": trained})
    never = put("evaluation.details.tuned.classification.baseline.classes", classes)
    result = verdict(counts, never, confused(cells), *behind(0.6, 0.05))
    (found,) = [one for one in result.findings if one.source == "unanswered-classes"]
    assert ("at random" in found.text) == scarce


def test_an_assistant_that_asks_in_all_splits_keeps_what_it_explains(verdict):
    roles = {"kind": "data", "level": "note", "text": "Check.", "source": "exchanged-roles", "explains": ("quality",),
             "figures": {"asks": {"train": [0.1, 0.8]}}}  # fmt: skip
    result = verdict(put("audit.findings", [roles]))
    (found,) = [one for one in result.findings if one.source == "exchanged-roles"]
    assert found.explains == ("quality",)
