"""The verdict on runs written by hand: each thing that can be wrong is named, with its figure, and nothing else is."""

import pytest
from report_samples import METRICS, baseline, change, everything, figure, write_run
from verdicts import alarms, found, losses, put, reached

from ftengine.api import AuditedData
from ftengine.report.verdict import judge
from ftengine.run.records import RunRecords
from ftengine_builtins.audits import Leaks


def test_a_sound_run_draws_no_alarm_and_its_headline_has_the_figures(verdict):
    told = verdict()
    assert (told.level, alarms(told)) == ("good", set())
    assert told.headline == (
        "Accuracy 93 %, base 65 %: better, a difference of +28.0 points (95 % interval +25.0 to +31.0), p = 0.002, on "
        "400 distinct examples of the test split."
    )


@pytest.mark.parametrize(
    ("path", "value", "level", "lead"),
    [
        ("evaluation.difference.accuracy", change(-0.1, better=False), "alarm", "worse, "),
        ("evaluation.difference.accuracy", change(0.01, better=None), "note", "not shown to be better, "),
        ("evaluation.difference.accuracy", change(0.1) | {"low": None, "high": None, "p": None, "better": None},
         "note", "too few examples "),
        ("evaluation.tuned.accuracy", figure(0.9) | {"value": None}, "alarm", "not a number, "),
    ],
)  # fmt: skip
def test_the_headline_says_what_the_difference_supports(verdict, path, value, level, lead):
    first = verdict(put(path, value)).findings[0]
    assert first.level == level
    figures, judgement = first.text.split(": ", 1)
    assert figures == f"Accuracy {'undefined' if lead == 'not a number, ' else '93 %'}, base 65 %"
    assert judgement.startswith(lead)


def test_without_held_out_data_nothing_is_claimed(verdict):
    nothing = [put(f"evaluation.{key}", {}) for key in ("base", "tuned", "difference", "details")]
    told = verdict(put("evaluation.split", None), put("evaluation.training", None), *nothing)
    assert (told.level, told.headline.partition(":")[0]) == ("note", "Nothing is known about quality")


def test_the_headline_is_one_judgement_and_alarms_precede_good_news(verdict):
    leak = put(
        "audit.facts.leaks",
        [{"between": ["train", "test"], "count": 1, "near": 0, "dropped": 0, "rows": 1, "places": [], "text": "one"}],
    )
    slices = verdict(sliced(-0.3, -0.4, 0.3))
    assert [one.source for one in slices.lead] == ["slice-gaps", "better-than-base"]
    assert slices.headline.startswith("Accuracy 93 %, base 65 %, but accuracy is 0.500 where channel is “s1” ")
    leaked = verdict(sliced(-0.3, -0.4, 0.3), leak)
    assert [one.source for one in leaked.lead] == ["leaked-rows", "better-than-base"]
    assert leaked.headline == "Set data.leaks to drop: one; accuracy 93 %, base 65 %."


def test_an_alarm_leads_before_a_note_on_what_would_be_better(verdict):
    """More training may pay, and there are wrong labels: the latter comes first; the former stands behind figures."""
    unsure = put("evaluation.difference.accuracy", change(0.01, better=None))
    falling = losses((0.9, 0.9), (0.8, 0.8), (0.7, 0.7), (0.6, 0.6), (0.5, 0.5))
    told = verdict(unsure, falling)
    assert [one.source for one in told.findings[:2]] == ["better-than-base", "learning-curve"]
    assert (told.headline, told.level) == (told.findings[0].text, "note")
    finding = {"kind": "licence", "level": "alarm", "text": "No licence.", "source": "anybody"}
    told = verdict(unsure, falling, put("audit.findings", [finding]))
    assert (told.headline, told.findings[0].source) == ("Accuracy 93 %, base 65 %, but no licence.", "anybody")


def test_a_metric_that_fell_is_in_the_headline_of_a_run_that_is_better_by_another(verdict):
    told = verdict(
        put("evaluation.metrics.triplets", METRICS["accuracy"] | {"label": "triplet accuracy", "evaluator": "own"}),
        put("evaluation.base.triplets", figure(0.93)),
        put("evaluation.tuned.triplets", figure(0.85)),
        put("evaluation.difference.triplets", change(-0.08, better=False)),
    )  # fmt: skip
    assert (told.level, told.quality.source) == ("note", "better-than-base")
    assert "better, but triplet accuracy fell to 85 % (base 93 %);" in told.headline


def test_what_explains_the_quality_leads_the_headline(verdict):
    told = verdict(losses((0.6, 0.6), (0.3, 0.3), (0.3, 0.2), (0.4, 0.1), (0.5, 0.05)), put("training.best_step", None))
    assert (told.level, [one.source for one in told.lead]) == ("alarm", ["over-fitted-weights", "better-than-base"])
    assert told.headline.startswith("Keep earlier weights (train.keep_best, train.early_stopping): ")
    assert told.headline.endswith("; accuracy 93 %, base 65 %.")
    assert told.findings[0].figures["step"] == 40


def written(*texts, wanted=None, **more):
    """Return a change: a model that is judged by its loss writes these texts."""
    answers = [
        {"place": f"a:{i}", "prompt": f"ask {i}", "wanted": wanted or f"say {i}", "base": "x", "tuned": text}
        for i, text in enumerate(texts)
    ]

    def spoil(files):
        evaluation = files["evaluation"]
        evaluation["metrics"] = {"loss": {"label": "loss", "higher_is_better": False, "evaluator": "language"}}
        evaluation |= {"details": {}, "base": {"loss": figure(2.72)}, "tuned": {"loss": figure(2.12)}, "paired": None}
        evaluation |= {"difference": {"loss": change(-0.6)}, "training": None}
        for line in files["metrics"]:
            line |= {"validation_loss": 2.1 + line["validation_loss"] / 10} if "validation_loss" in line else {}
        files["examples"] = {"evaluator": None, "improved": [], "worse": [], "answers": answers, "writes": True} | more

    return spoil


@pytest.mark.parametrize(
    ("texts", "level", "headline"),
    [
        (["", " ", *[""] * 9, "zq"], "alarm", "Loss 2.120, base 2.720: not usable, 11 of 12 answers are blank."),
        (["", "", *[""] * 5, *"zqrst"], "alarm", "Loss 2.120, base 2.720: not usable, 7 of 12 answers are blank."),
        (["same"] * 12, "alarm", "Loss 2.120, base 2.720: not usable, it always answers “same”, to all 12 "),
        (["same"] * 11 + ["zq"], "alarm", "Loss 2.120, base 2.720: not usable, it answers “same” to 11 of 12 "),
        (["same"] * 10 + ["zq", "q"], "note", "Loss 2.120, base 2.720: better, a "),
        ([f"say {i}" for i in range(12)], "note", "Loss 2.120, base 2.720: better, a "),
        ([], "note", "Loss 2.120, base 2.720: better, a "),  # evaluation.answers: null
    ],
)
def test_a_better_loss_is_no_good_news_where_nobody_measured_what_the_model_writes(verdict, texts, level, headline):
    told = verdict(written(*texts), put("evaluation.slices", {}))
    assert (told.level, told.headline.startswith(headline)) == (level, True), told.headline
    second = next(finding.text for finding in told.findings if finding.source == "better-than-base")
    assert second.endswith(f" No metric scored its generated text{': read its answers.' if texts else '.'}")
    assert "good" not in {finding.level for finding in told.findings}


@pytest.mark.parametrize(
    ("validation", "leak", "leads"),
    [(0.08, [], True), (1.9, [], False), (0.08, [{"between": ["train", "validation"], "count": 3, "near": 0}], False)],
)
def test_a_test_split_that_is_answered_far_worse_than_validation_leads_the_verdict(verdict, validation, leak, leads):
    """Both were not trained on, so they are not of one source, or answers stand in the wrong rows."""
    leaks = [{"dropped": 0, "places": [], "text": "some", "rows": 3, **one} for one in leak]
    held = losses(*((validation + fall, validation) for fall in (0.4, 0.3, 0.2, 0.1, 0.0)))
    told = verdict(written(*"abcdefgh"), held, put("audit.facts.leaks", leaks))
    assert (told.findings[0].source == "validation-and-test") == leads
    assert told.findings[0].figures.get("validation") == (pytest.approx(validation) if leads else None)


def test_blanks_and_one_text_are_no_fault_where_they_are_what_is_wanted(verdict):
    assert verdict(written(*["yes"] * 12, wanted="yes")).level == "note"
    assert verdict(reached(given=" ", count=300)).headline.startswith(
        "Drift 0.500, base 0.200: not usable, it answers nothing "
    )


def test_prompts_that_are_all_the_same_are_named(verdict):
    def one_prompt(files):
        for i, answer in enumerate(files["examples"]["answers"]):
            answer |= {"prompt": "Answer {question}", "wanted": f"say {i}"}

    first = verdict(written(*"abcdefgh"), one_prompt).findings[0]
    assert (first.level, first.source, first.figures["prompts"]) == ("alarm", "constant-answer", 1)
    assert "Answer {question}" in first.text

    def shortened(files):
        for answer in files["examples"]["answers"]:
            answer["prompt"] = "You help. … Answer in one word."

    assert "prompts" not in verdict(written(*"abcdefgh"), one_prompt, shortened).findings[0].figures


def test_labels_that_the_model_contradicts_are_named_with_their_places(verdict):
    rows = [[0.02, False, f"news.jsonl:{i}"] for i in range(30)] + [[0.97, True, "news.jsonl:99"]] * 170
    (flipped,) = found(verdict(put("evaluation.training.judged.rows", rows)), "labels", "alarm")
    assert flipped.figures["doubted"]["value"] == pytest.approx(0.15)
    assert flipped.places[0] == "news.jsonl:0"
    unsure = [[score and 0.4, right, place] for score, right, place in rows]
    assert not found(verdict(put("evaluation.training.judged.rows", unsure)), "labels")
    noise = {"kind": "labels", "level": "alarm", "text": "Look.", "figures": {"share": 0.2}, "source": "label-noise"}
    (named,) = found(verdict(put("evaluation.training.judged.rows", rows), put("audit.findings", [noise])), "labels")
    assert (named.source, named.figures) == ("label-noise", {"share": 0.2})  # by words, which are not learnt by heart


@pytest.mark.parametrize(
    ("leak", "leaks", "level"),
    [
        ({"between": ["train", "test"], "count": 1, "near": 0}, "auto", "alarm"),
        ({"between": ["train", "test"], "count": 0, "near": 20}, "auto", "note"),
        ({"between": ["train", "test"], "count": 0, "near": 21}, "auto", "alarm"),
        ({"between": ["train", "test"], "count": 0, "near": 0, "groups": 1}, "auto", "alarm"),
        ({"between": ["train", "test"], "count": 40, "near": 9}, "warn", "note"),  # figures are without them
        ({"between": ["train", "test"], "count": 400, "near": 0}, "warn", "alarm"),  # all
        ({"between": ["train", "validation"], "count": 3, "near": 3}, "warn", "note"),
        ({"between": ["train", "validation"], "count": 3, "near": 40}, "warn", "alarm"),
        ({"between": ["validation", "test"], "count": 40, "near": 0}, "auto", "note"),
        ({"between": ["validation", "test"], "count": 199, "near": 0}, "auto", "note"),
        ({"between": ["validation", "test"], "count": 190, "near": 10}, "auto", "alarm"),  # one set
        ({"between": ["validation", "test"], "count": 400, "near": 0}, "drop", "alarm"),
        ({"between": ["train", "validation"], "count": 400, "near": 0}, "warn", "alarm"),
        ({"between": ["train", "test"], "count": 40, "near": 0, "dropped": 40}, "drop", None),
    ],
)
def test_plan_and_verdict_judge_a_leak_alike(verdict, leak, leaks, level):
    rows = leak["count"] + leak["near"] + 5 * leak.get("groups", 0)
    leak = {"dropped": 0, "places": ["a:1 = b:2"], "text": "some", "rows": rows, **leak}
    told = found(verdict(put("audit.facts.leaks", [leak]), put("recipe.data.leaks", leaks)), "data")
    assert [f.level for f in told] == ([level] if level else [])
    splits = dict.fromkeys(("train", "validation", "test"), range(400))
    facts = {"leaks": [leak], "dropped": leak["dropped"], "overlap": []}
    planned = Leaks().examine(AuditedData(splits, "", {}, None, {}, facts, {}, {"leaks": leaks}))
    assert next(iter(planned)).level == (level or "note")


def test_figures_are_of_the_rows_that_do_not_leak_and_the_others_are_reported(verdict):
    def measured_apart(files):
        probe = {"kind": "leaks", "name": "rows", "data": "test.jsonl", "examples": 40, "base": {}, "difference": {}}
        files["evaluation"]["probes"] = [probe | {"tuned": {"accuracy": figure(0.99)}}]

    leak = {"between": ["train", "test"], "count": 40, "near": 0, "dropped": 0, "rows": 40, "places": [], "text": "40"}
    leaking = (put("audit.facts.leaks", [leak]), put("recipe.data.leaks", "warn"), measured_apart)
    said = verdict(*leaking)
    (told,) = found(said, "data", "note")
    assert told.figures["leaked"]["value"] == 0.99
    assert told.text.endswith("accuracy 0.930 on new rows, 0.990 on these.")
    assert said.headline.endswith(
        " of the test split, without the 40 that are also in training (accuracy 99 % on those)."
    )
    said = verdict(*leaking, put("evaluation.metrics.accuracy.relative", True))  # few rows are ranked more easily
    assert not any("0.990" in text or "99 %" in text for text in (said.headline, found(said, "data", "note")[0].text))


def test_alarms_of_audits_are_alarms_of_the_run(verdict):
    finding = {"kind": "licence", "level": "alarm", "text": "No licence.", "source": "anybody"}
    told = verdict(put("audit.findings", [finding, finding | {"level": "note"}]))
    assert [(f.kind, f.source) for f in told.findings] == [("licence", "anybody"), ("quality", "better-than-base")]


def sliced(*gaps, p=0.001):
    column = {"metric": "accuracy", "worst": "s0", "base_gap": None, "slices": []}
    for i, value in enumerate(gaps):
        one = {"value": f"s{i}", "examples": 90, "small": False, "base": {}, "difference": {}}
        gap = change(value, 0.05, None, p) | {"p_adjusted": p}
        column["slices"].append(one | {"tuned": {"accuracy": figure(0.9 + value)}, "gap": gap})
    return put("evaluation.slices", {"channel": column})


def test_slices_behind_the_others_are_named_up_to_five(verdict):
    told = found(verdict(sliced(*([-0.3] * 7), 0.3)), "slices")
    assert [f.figures.get("value") for f in told] == ["s0", "s1", "s2", "s3", "s4", None]
    assert told[-1].figures["values"] == ["s5", "s6"]
    assert {f.level for f in told} == {"alarm"}


def test_a_column_of_which_nothing_was_tested_is_reported(verdict):
    def small(*sizes, left_out=0):
        def change(files):
            column = files["evaluation"]["slices"]["channel"] | {"left_out": left_out, "worst": None}
            for one, size in zip(column["slices"], sizes, strict=True):
                one |= {"examples": size, "small": size < 30, "gap": None}
            files["evaluation"]["slices"]["channel"] = column

        return [f.text for f in found(verdict(sliced(*([0] * len(sizes))), change), "slices")]

    assert small(*([1] * 46), 14) == [
        "Column “channel” has 47 values in 60 held-out examples, so no slice has 30 examples and none is tested: slice "
        "by a column with few values."
    ]
    assert small(*([1] * 50), left_out=30)[0].startswith("Column “channel” has more than 50 values in 80 held-out ex")
    assert small(20, 20)[0].endswith("has 2 values in 40 held-out examples, so no slice has 30 examples and none is "
                                     "tested: hold out more examples.")  # fmt: skip
    assert small(40, 20) == ["By channel, one slice is too small to test: “s1”."]


def test_slices_that_tuning_made_worse_go_by_the_p_of_all_slices(verdict):
    def worse(p_adjusted):
        def spoil(files):
            for one in files["evaluation"]["slices"]["channel"]["slices"][:2]:
                one["small"] = p_adjusted is None
                one["difference"] = {"accuracy": change(-0.2, better=False, p=0.001) | {"p_adjusted": p_adjusted}}

        return [f.figures for f in found(verdict(sliced(0, 0, 0), spoil), "slices") if "difference" in f.figures]

    assert [(one["value"], one["p_adjusted"]) for one in worse(0.01)] == [("s0", 0.01), ("s1", 0.01)]
    assert worse(0.06) == worse(None) == []


def test_where_nearly_all_examples_are_behind_the_others_are_the_exception(verdict):
    def grow(files):
        files["evaluation"]["slices"]["channel"]["slices"][0]["examples"] = 1800

    (usual,) = found(verdict(sliced(-0.3, 0.3), grow), "slices")
    assert usual.level == "note"
    assert usual.text.startswith("Where channel is not “s0” (90 of 1,890 examples), accuracy is better by 0.30 (95 % ")


@pytest.mark.parametrize("kind", ["robustness", "forgetting", "memorisation", "refusal"])
def test_every_probe_that_went_wrong_is_reported(tmp_path, registry, kind):
    files = everything()
    told = judge(RunRecords.read(write_run(tmp_path / "run", files)), registry)
    assert [f.level for f in found(told, kind)] == ["note" if kind == "robustness" else "alarm"]


def test_what_got_worse_is_reported_after_correction_over_all_metrics(verdict):
    def many(p):
        def spoil(files):
            evaluation = files["evaluation"]
            evaluation["metrics"] = dict(METRICS)
            for i in range(10):
                evaluation["metrics"][f"m{i}"] = {"label": f"M{i}", "higher_is_better": True, "evaluator": "own"}
                evaluation["base"][f"m{i}"] = evaluation["tuned"][f"m{i}"] = figure(0.5)
                evaluation["difference"][f"m{i}"] = change(-0.04, better=False, p=p if i == 0 else 0.9)

        return spoil

    assert [f.figures["metric"] for f in found(verdict(many(0.003)), "worse")] == ["m0"]
    assert not found(verdict(many(0.04)), "worse")


def calibrated(name, declared, value, **facts):
    def spoil(files):
        evaluation = files["evaluation"]
        evaluation["metrics"] = dict(METRICS)
        evaluation["metrics"][name] = declared | {"kind": "calibration", "evaluator": "own"}
        for side in ("base", "tuned"):
            evaluation[side][name] = figure(value)
            evaluation["details"][side]["own"] = facts
        evaluation["difference"][name] = change(0.1, better=False)

    return spoil


@pytest.mark.parametrize(
    ("facts", "temperature", "said"),
    [
        ({"ece": 0.2, "after": {"ece": 0.05}}, 1.4, "0.200 to 0.050"),
        ({"ece": 0.2}, 1.4, "--calibrated"),  # fitted on what is measured
        ({"ece": 0.2, "after": {"ece": 0.19}}, 1.4, None),
        ({"ece": 0.2, "after": {"ece": 0.05}}, 0.7, None),
        ({"ece": 0.2, "after": {"ece": 0.05}}, None, None),
    ],
)
def test_a_temperature_is_advised_that_predict_applies_and_that_helps(verdict, facts, temperature, said):
    kept = {"temperature": temperature} if temperature else {}
    changes = put("facts.calibration", kept), calibrated("drift", {"label": "drift"}, 0.2, **facts)
    (told,) = found(verdict(*changes), "calibration")
    assert (said or "confidence") in told.text
    assert ("by 1.40" in told.text) == (said is not None)


def test_classes_without_a_held_out_example_are_named(verdict):
    def unseen(*names):
        classes = [*baseline([[130, 0, 0], [0, 130, 0], [0, 0, 140]])["classes"], *((name, 0, 0) for name in names)]
        return verdict(put("evaluation.details.tuned.classification.baseline.classes", classes))

    assert not found(unseen(), "classes")
    (one,) = found(unseen("rare"), "classes", "note")
    assert "1 of 4 classes" in one.text
    assert "(rare)" in one.text
    (many,) = found(unseen(*"abcdefg"), "classes", "note")
    assert "7 of 10 classes" in many.text
    assert "(a, b, c, d, e and 2 more)" in many.text


def diverged(files):
    """Change a run: its training loss went far above where it began, and it answers one class to all examples."""
    for line in (one for one in files["metrics"] if "loss" in one):
        line["loss"] = 1.0 + (9.0 if 10 < line["step"] < 40 else 0.0)
    confusion = [[140, 0, 0], [130, 0, 0], [130, 0, 0]]
    files["evaluation"]["details"]["tuned"]["classification"]["baseline"] = baseline(confusion)
    files["evaluation"]["tuned"]["accuracy"] = files["evaluation"]["tuned"]["macro_f1"] = figure(0.35)
    files["evaluation"]["training"]["tuned"]["accuracy"] = figure(0.34)


def test_what_follows_from_a_cause_is_no_advice_of_its_own(verdict):
    told = verdict(diverged)
    assert [one.source for one in told.lead] == ["learning-curve", "constant-answer"]
    assert told.headline.startswith("Lower the learning rate (0.0002, to 2e-05): ")
    assert told.headline.endswith("; accuracy 35 %, base 65 %, it always answers “business”, to all 400 examples.")
    (classes,) = found(told, "classes")
    assert (classes.explained_by, classes.level) == ("learning-curve", "alarm")
    assert {one.explained_by != "" for one in told.findings[told.findings.index(classes) :]} == {True}
    # Of a model that is of use the same classes are an alarm of their own.
    (classes,) = found(verdict(put("evaluation.details.tuned.classification.baseline", missing())), "classes")
    assert (classes.explained_by, classes.level) == ("", "alarm")


def missing():
    return baseline([[140, 0, 0], [0, 130, 0], [65, 65, 0]])


def test_rare_classes_explain_why_always_the_frequent_one_is_answered(verdict):
    told = verdict(
        put("evaluation.details.tuned.classification.baseline", baseline([[380, 0, 0], [10, 0, 0], [10, 0, 0]])),
        put("evaluation.tuned.accuracy", figure(0.95)),
        put("recipe.task.class_weights", None),
    )
    assert [one.source for one in told.lead] == ["unanswered-classes", "constant-answer"]
