"""The verdict on runs written by hand: each thing that can be wrong is named, with its figure, and nothing else is."""

import json

import pytest
from report_samples import LABELS, METRICS, baseline, change, everything, figure, interval, sound, write_run

from ftengine.api import Difference, Estimate, Finding, Metric, Rule, figures
from ftengine.errors import RunError
from ftengine.plugins.registry import Registry
from ftengine.report.verdict import judge
from ftengine.report.write import conclude, runs_in, verdict_of
from ftengine.run.directory import RunDirectory
from ftengine.run.records import RunRecords, Verdict
from ftengine_builtins.rules.chance import got_worse


@pytest.fixture(scope="module")
def registry():
    return Registry()


@pytest.fixture
def verdict(tmp_path, registry):
    """Judge a sound run after it was spoilt: by changes to its files."""

    counter = iter(range(10))

    def of(*spoil):
        files = sound()
        for one in spoil:
            one(files)
        return judge(RunRecords.read(write_run(tmp_path / f"run{next(counter)}", files)), registry)

    return of


def found(verdict, kind, level=None):
    return [f for f in verdict.findings[1:] if f.kind == kind and level in (None, f.level)]


def alarms(verdict):
    return {finding.kind for finding in verdict.findings if finding.level == "alarm"}


def put(path, value):
    """Return a change of a run's files: the value at a dotted path."""
    *parents, last = path.split(".")

    def spoil(files):
        for name in parents:
            files = files[name]
        files[last] = value

    return spoil


def losses(*points):
    """Return a change of validations: (validation loss, training loss) each."""

    def spoil(files):
        for line, (held, seen) in zip((x for x in files["metrics"] if "validation_loss" in x), points, strict=True):
            line |= {"validation_loss": held, "training_loss": seen}

    return spoil


def test_a_sound_run_draws_no_alarm_and_its_headline_has_the_figures(verdict):
    told = verdict()
    assert (told.level, alarms(told)) == ("good", set())
    assert told.headline == (
        "Better than its base: accuracy 0.930 against 0.650, a difference of +0.280 (95 % interval +0.250 to +0.310), "
        "p = 0.002, on 400 distinct examples of the test split."
    )


@pytest.mark.parametrize(
    ("path", "value", "level", "lead"),
    [
        ("evaluation.difference.accuracy", change(-0.1, better=False), "alarm", "Worse than its base: "),
        ("evaluation.difference.accuracy", change(0.01, better=None), "note", "Not shown to be better than its base"),
        ("evaluation.difference.accuracy", interval(0.1, 0) | {"low": None, "high": None, "p": None, "better": None},
         "note", "Too few examples"),
        ("evaluation.tuned.accuracy", figure(0.9) | {"value": None}, "alarm", "Not a number: "),
    ],
)  # fmt: skip
def test_the_headline_says_what_the_difference_supports(verdict, path, value, level, lead):
    first = verdict(put(path, value)).findings[0]
    assert first.level == level
    assert first.text.startswith(lead)


def test_without_held_out_data_nothing_is_claimed(verdict):
    nothing = [put(f"evaluation.{key}", {}) for key in ("base", "tuned", "difference", "details")]
    told = verdict(put("evaluation.split", None), put("evaluation.training", None), *nothing)
    assert (told.level, told.headline.partition(":")[0]) == ("note", "Nothing is known about quality")


def test_the_headline_says_what_other_alarms_are_about_in_words(verdict):
    leak = put(
        "audit.facts.leaks",
        [{"between": ["train", "test"], "count": 1, "near": 0, "dropped": 0, "places": ["a:1 = b:2"], "text": "one"}],
    )
    told = verdict(sliced(-0.3, -0.4, 0.3), leak).headline
    assert told.startswith("3 alarms, about the data and slices of the examples. Better than its base: ")
    told = verdict(leak, put("evaluation.difference.accuracy", change(-0.1, better=False))).headline
    assert told.startswith("Worse than its base: ")
    assert told.endswith(" One further alarm, about the data.")


def test_alarms_are_named_in_the_headline_and_come_first(verdict):
    told = verdict(losses((0.6, 0.6), (0.3, 0.3), (0.3, 0.2), (0.4, 0.1), (0.5, 0.05)), put("training.best_step", None))
    assert (told.level, told.findings[1].source) == ("alarm", "over-fitted-weights")
    assert told.headline.startswith("One alarm, about over-fitting. Better than its base: ")
    assert told.findings[1].figures["step"] == 40


@pytest.mark.parametrize(
    ("points", "level"),
    [
        (((0.6, 0.6), (0.3, 0.3), (0.33, 0.2), (0.34, 0.1), (0.36, 0.05)), "note"),  # earlier weights are kept
        (((0.6, 0.6), (0.3, 0.3), (0.33, 0.4), (0.34, 0.5), (0.36, 0.6)), None),  # both rise
        (((0.6, 0.6), (0.3, 0.3), (0.301, 0.2), (0.302, 0.1), (0.303, 0.05)), None),  # by a wobble
    ],
)
def test_what_counts_as_over_fitting(verdict, points, level):
    told = found(verdict(losses(*points), put("training.best_step", 40)), "over-fitting")
    assert [f.level for f in told if f.source == "over-fitted-weights"] == ([level] if level else [])


def test_the_gap_to_training_examples_is_newcombes(verdict):
    told = verdict(
        put("evaluation.tuned.accuracy", figure(0.7)), put("evaluation.training.tuned.accuracy", figure(1.0, 0))
    )
    (gap,) = found(told, "over-fitting", "alarm")
    assert gap.figures["gap"] == pytest.approx({"value": 0.3, "low": 0.27, "high": 0.33})


def on_training(metric, base, tuned, learned):
    """Return a change: one metric's figures on training examples, and how it changed on them."""

    def spoil(files):
        training = files["evaluation"]["training"]
        training["base"][metric], training["tuned"][metric] = base, tuned
        training["difference"] = {metric: learned}

    return spoil


def test_a_gap_that_the_base_has_as_well_is_no_over_fitting(verdict):
    held = put("evaluation.base.accuracy", figure(0.4)), put("evaluation.tuned.accuracy", figure(0.7))
    change_of = put("evaluation.difference.accuracy", change(0.3))
    easy = on_training("accuracy", figure(0.7), figure(0.97), change(0.27))
    (told,) = found(verdict(*held, change_of, easy), "over-fitting")
    assert told.level == "note"
    assert told.text.startswith("Better on training examples than on new ones, as the base is already: accuracy 0.970 ")
    base = "and was 0.300 (95 % interval 0.258 to 0.342) for the base, so training did not widen it beyond chance."
    assert told.text.endswith(base)
    learnt = on_training("accuracy", figure(0.5), figure(0.97), change(0.47))
    (told,) = found(verdict(*held, change_of, learnt), "over-fitting", "alarm")
    assert told.text.endswith(", and was 0.100 (95 % interval 0.058 to 0.142) for the base.")
    assert told.figures["grown"]["low"] > 0.1


def test_what_a_base_without_a_gap_scatters_by_explains_none(verdict):
    """A fresh head guesses, on few examples: the difference of both gaps would be chance where the gap is not."""
    held = put("evaluation.base.accuracy", figure(0.5, 0.1)), put("evaluation.tuned.accuracy", figure(0.78, 0.08))
    learnt = on_training("accuracy", figure(0.5, 0.14), figure(1.0, 0.02), change(0.5, 0.14))
    (told,) = found(verdict(*held, learnt), "over-fitting", "alarm")
    assert told.text.startswith("Much better on training examples than on new ones: ")
    assert told.text.endswith("the gap is 0.22 (95 % interval 0.14 to 0.30).")
    assert told.figures["grown"] is None


@pytest.mark.parametrize(
    ("base", "learned", "level"),
    [(4.0, -2.6, "alarm"), (2.0, -1.5, "alarm"), (2.0, -0.6, "note"), (2.2, -0.8, "note"), (0.7, -0.6, "alarm")],
)
def test_losses_are_compared_with_the_base_by_their_ratio(verdict, base, learned, level):
    def spoil(files):
        files["evaluation"]["metrics"] = {"loss": {"label": "loss", "higher_is_better": False, "evaluator": "language"}}
        for part in ("base", "tuned", "difference"):
            files["evaluation"][part] = {}
        files["evaluation"] |= {"paired": None, "slices": {}, "probes": []}
        files["evaluation"]["base"]["loss"], files["evaluation"]["tuned"]["loss"] = figure(4.0), figure(3.4)
        files["evaluation"]["difference"]["loss"] = change(-0.6)
        figures = {"base": {"loss": figure(base)}, "tuned": {"loss": figure(base + learned)}}
        files["evaluation"]["training"] = {"n": 200, **figures, "difference": {"loss": change(learned)}}

    told = [f for f in found(verdict(spoil), "over-fitting") if f.source == "generalisation-gap"]
    assert [f.level for f in told] == [level]


def confused(*rows):
    return put("evaluation.details.tuned.classification.baseline", baseline(rows))


@pytest.mark.parametrize(
    ("rows", "accuracy", "kinds"),
    [
        (((300, 0, 0), (50, 0, 0), (50, 0, 0)), 0.75, {"quality", "classes"}),
        (((300, 0, 0), (0, 50, 0), (2, 0, 0)), 0.99, set()),  # a class of two may be missed
        (((400, 0, 0), (0, 0, 0), (0, 0, 0)), 1.0, set()),  # one class: nobody can be better
    ],
)
def test_constant_answers_and_classes_never_answered_are_alarms(verdict, rows, accuracy, kinds):
    assert (
        alarms(verdict(confused(*rows), put("evaluation.tuned.accuracy", figure(accuracy)))) - {"over-fitting"} == kinds
    )


def reached(evaluator="own", metric="drift", **told):
    """Return a change: an evaluator of anybody's that declares its metric and tells what is reached by it."""

    def spoil(files):
        evaluation = files["evaluation"]
        metrics = {metric: {"label": "drift", "higher_is_better": True, "evaluator": evaluator, "decides": True}}
        evaluation["metrics"] = METRICS | metrics
        for side, value in (("base", 0.2), ("tuned", 0.5)):
            evaluation[side][metric] = figure(value)
        evaluation["difference"][metric] = change(0.3)
        evaluation["details"]["tuned"][evaluator] = {
            "baseline": {"answer": "b", "share": 0.1, "figures": {metric: 0.3}, "total": 400} | told
        }

    return spoil


@pytest.mark.parametrize(
    ("told", "level", "headline"),
    [
        ({}, "good", "Better than its base: drift 0.500 against 0.200"),
        ({"given": "x", "count": 400}, "alarm", "Not usable: it always answers “x”, to all 400 examples of the test "),
        ({"given": "", "count": 400}, "alarm", "Not usable: it always answers nothing, to all 400 examples"),
        ({"given": "x", "count": 390}, "alarm", "Not usable: it answers “x” to 390 of 400 examples"),
        ({"given": "x", "count": 300}, "good", "Better than its base"),
        ({"given": "x", "count": 400, "share": 0.995}, "good", "Better than its base"),  # so is the truth, all but
        ({"figures": {"drift": 0.49}}, "alarm", "Not shown to be better than always answering “b”: drift 0.500 "),
        ({"figures": {"drift": 0.6}}, "alarm", "No better than always answering “b”: drift 0.500 "),
        ({"figures": {"drift": 0.6, "accuracy": 0.8}}, "note", "No better than always answering “b”: drift 0.500 "),
        ({"figures": {"accuracy": 0.95}}, "good", "Better than its base"),  # the built-in one's is taken
    ],
)
def test_anybodys_metric_decides_and_is_measured_by_what_is_reached_without_looking(verdict, told, level, headline):
    found = verdict(reached(**told))
    assert found.level == level
    assert found.headline.startswith(headline)


def test_figures_of_the_headline_are_those_that_its_text_has(verdict):
    figures = put("evaluation.details.tuned.classification.baseline.figures", {"accuracy": 0.4})
    (first, *_) = verdict(put("facts.new_modules", ["classifier"]), figures).findings
    assert "accuracy 0.930 against 0.400, a difference of +0.530 (95 % interval +0.500 to +0.560)" in first.text
    assert first.figures == {
        "metric": "accuracy",
        "tuned": figure(0.93),
        "baseline": 0.4,
        "difference": pytest.approx(interval(0.53, 0.03)),
    }
    (first, *_) = verdict(reached(given="x", count=400)).findings
    assert (first.figures["baseline"], first.figures["count"], first.figures["given"]) == (0.3, 400, "x")
    (first, *_) = verdict(reached("classification", "exact", figures={})).findings
    assert "372 of 400 answers are exact (260 of its base's)" in first.text
    assert [first.figures[key] for key in ("exact", "base_exact", "answers")] == [372, 260, 400]


def test_a_fresh_head_is_told_where_nothing_is_known_of_constant_answers(verdict):
    """Whatever metric decides: that of an evaluator without a baseline, too."""
    fresh, guesses = put("facts.new_modules", ["classifier"]), "Its base has a fresh head, which guesses."
    told = verdict(fresh, reached(figures={"accuracy": 0.4})).findings[0].text
    assert told.startswith("Better than its base: drift ")
    assert told.endswith(guesses)
    assert guesses not in verdict(reached(figures={"accuracy": 0.4})).headline


def test_a_model_is_measured_by_its_pairs_with_the_constant_answer(verdict):
    assert verdict(reached(gains={"drift": change(0.3)})).level == "good"
    told = verdict(reached(gains={"drift": change(0.2, half=0.21)}))
    assert told.headline == (
        "Not shown to be better than always answering “b”: drift 0.500 against 0.300, a difference of +0.20 (95 % "
        "interval −0.01 to +0.41)."
    )
    gains = {"drift": change(0.2, half=0.21)}
    told = verdict(reached(gains=gains, figures={"drift": 0.3, "accuracy": 0.8, "macro_f1": 0.3}))
    assert "But it does more than guess: accuracy 0.930" in told.headline
    assert "against 0.800 by guessing" in told.headline


@pytest.mark.parametrize(
    ("share", "level", "headline"),
    [(0.4, "good", "Better than always answering “business”: accuracy 0.930 against 0.400, a difference of +0.530 "),
     (0.92, "alarm", "Not shown to be better than always answering “business”: accuracy 0.930 "),
     (0.95, "alarm", "Not usable: no better than always answering “business”, accuracy 0.930 ")],
)  # fmt: skip
def test_a_fresh_head_is_no_bar(verdict, share, level, headline):
    figures = put("evaluation.details.tuned.classification.baseline.figures", {"accuracy": share})
    found = verdict(put("facts.new_modules", ["classifier"]), figures)
    assert found.level == level
    assert found.headline.startswith(headline)
    assert not any(f.text.startswith("Better than its base") for f in found.findings)


def steps(*values):
    """Return a change of the training losses, a step each."""

    def spoil(files):
        line = next(one for one in files["metrics"] if "loss" in one)
        files["metrics"] = [line | {"step": i, "loss": loss} for i, loss in enumerate(values, 1)]

    return spoil


NO_BETTER = [put(f"evaluation.difference.{metric}", change(0, better=None)) for metric in ("accuracy", "macro_f1")]
CALM = [1.0 - 0.001 * i for i in range(20)]
WILD = [0.6, 4.6, 4.2, 1.1, 3.9, 0.8, 4.4, 2.1, 0.7, 4.5] * 2


@pytest.mark.parametrize(
    ("curve", "spoil", "told"),
    [
        (CALM[:9], NO_BETTER, "The training loss hardly fell: from 0.999 to 0.993 in 9 steps."),
        (CALM, NO_BETTER, "The training loss hardly fell: "),
        # The metric that decides is a constant's, and another got better.
        (CALM, [reached(figures={"drift": 0.6})], "The training loss hardly fell: "),
        (CALM, [], None),
        (WILD[:9], NO_BETTER, None),  # nothing can be told from batches that differ so much
    ],
)
def test_too_little_training_is_told_where_the_model_is_of_no_use_and_the_losses_show_it(verdict, curve, spoil, told):
    texts = [finding.text for finding in found(verdict(steps(*curve), *spoil), "learning")]
    assert [text.startswith(told or "") for text in texts] == ([True] if told else [])


@pytest.mark.parametrize(
    ("share", "told"),
    [(0.95, True), (0.4, False)],
)
def test_that_a_fresh_head_guesses_worse_is_no_learning(verdict, share, told):
    figures = put("evaluation.details.tuned.classification.baseline.figures", {"accuracy": share, "macro_f1": share})
    findings = found(verdict(steps(*CALM), put("facts.new_modules", ["classifier"]), figures), "learning")
    assert [finding.level for finding in findings] == (["alarm"] if told else [])


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
        files["examples"] = {"evaluator": None, "improved": [], "worse": [], "answers": answers, "writes": True} | more

    return spoil


@pytest.mark.parametrize(
    ("texts", "level", "headline"),
    [
        (["", " ", *[""] * 9, "zq"], "alarm", "Not usable: 11 of 12 answers are blank."),
        (["", "", *[""] * 5, *"zqrst"], "alarm", "Not usable: 7 of 12 answers are blank."),
        (["same"] * 12, "alarm", "Not usable: it always answers “same”, to all 12 held-out prompts asked."),
        (["same"] * 11 + ["zq"], "alarm", "Not usable: it answers “same” to 11 of 12 held-out prompts asked."),
        (["same"] * 10 + ["zq", "q"], "note", "Loss is better than its base's: 2.120 against 2.720, a "),
        ([f"say {i}" for i in range(12)], "note", "Loss is better than its base's: 2.120 against 2.720, a "),
        ([], "note", "Loss is better than its base's: 2.120 against 2.720, a "),  # evaluation.answers: null
    ],
)
def test_a_better_loss_is_no_good_news_where_nobody_measured_what_the_model_writes(verdict, texts, level, headline):
    told = verdict(written(*texts), put("evaluation.slices", {}))
    assert (told.level, told.headline.startswith(headline)) == (level, True), told.headline
    second = next(finding.text for finding in told.findings if finding.source == "better-than-base")
    assert second.endswith(f" What it writes was not measured{': read its answers.' if texts else '.'}")
    assert "good" not in {finding.level for finding in told.findings}


def test_blanks_and_one_text_are_no_fault_where_they_are_what_is_wanted(verdict):
    assert verdict(written(*["yes"] * 12, wanted="yes")).level == "note"
    assert verdict(reached(given=" ", count=300)).headline.startswith("Not usable: it answers nothing to 300 of 400 ")


def test_labels_that_the_model_contradicts_are_named_with_their_places(verdict):
    rows = [[0.02, False, f"news.jsonl:{i}"] for i in range(30)] + [[0.97, True, "news.jsonl:99"]] * 170
    (flipped,) = found(verdict(put("evaluation.training.judged.rows", rows)), "labels", "alarm")
    assert flipped.figures["doubted"]["value"] == pytest.approx(0.15)
    assert flipped.places[0] == "news.jsonl:0"
    unsure = [[score and 0.4, right, place] for score, right, place in rows]
    assert not found(verdict(put("evaluation.training.judged.rows", unsure)), "labels")


@pytest.mark.parametrize(
    ("leak", "level"),
    [
        ({"between": ["train", "test"], "count": 1, "near": 0}, "alarm"),
        ({"between": ["train", "test"], "count": 0, "near": 3}, "note"),
        ({"between": ["validation", "test"], "count": 40, "near": 0}, "note"),
        ({"between": ["train", "test"], "count": 40, "near": 0, "dropped": 40}, None),
    ],
)
def test_leaks_are_judged_by_the_split_that_figures_are_made_on(verdict, leak, level):
    told = found(
        verdict(put("audit.facts.leaks", [{"dropped": 0, "places": ["a:1 = b:2"], "text": "some", **leak}])), "data"
    )
    assert [f.level for f in told] == ([level] if level else [])


def test_alarms_of_audits_are_alarms_of_the_run(verdict):
    finding = {"kind": "licence", "level": "alarm", "text": "No licence.", "source": "anybody"}
    told = verdict(put("audit.findings", [finding, finding | {"level": "note"}]))
    assert [(f.kind, f.source) for f in told.findings[1:]] == [("licence", "anybody")]


def sliced(*gaps, p=0.001):
    column = {"metric": "accuracy", "worst": "s0", "gap": None, "base_gap": None, "slices": []}
    for i, value in enumerate(gaps):
        one = {"value": f"s{i}", "examples": 90, "small": False, "base": {}, "difference": {}}
        gap = interval(value, 0.05) | {"p": p, "p_adjusted": p}
        column["slices"].append(one | {"tuned": {"accuracy": figure(0.9 + value)}, "gap": gap})
    return put("evaluation.slices", {"channel": column})


def test_slices_behind_the_others_are_named_up_to_five(verdict):
    told = found(verdict(sliced(*([-0.3] * 7), 0.3)), "slices")
    assert [f.figures.get("value") for f in told] == ["s0", "s1", "s2", "s3", "s4", None]
    assert told[-1].figures["values"] == ["s5", "s6"]
    assert {f.level for f in told} == {"alarm"}


def test_a_column_of_which_nothing_was_tested_is_said(verdict):
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
    assert small(40, 20) == ["By channel, one slice is too small to be judged: “s1”."]


def test_slices_that_tuning_made_worse_go_by_the_p_of_all_slices(verdict):
    def worse(p_adjusted):
        def spoil(files):
            for one in files["evaluation"]["slices"]["channel"]["slices"][:2]:
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


def test_slices_stand_in_the_order_of_how_surely_they_are_behind(verdict):
    told = found(verdict(sliced(-0.2, -0.4, -0.3, 0.3)), "slices")
    assert [f.figures["value"] for f in told] == ["s1", "s2", "s0"]


def test_a_gap_within_chance_is_not_mentioned(verdict):
    assert not found(verdict(sliced(-0.3, 0.3, p=0.2)), "slices")


@pytest.mark.parametrize("kind", ["robustness", "forgetting", "memorisation", "refusal"])
def test_every_probe_that_went_wrong_is_told(tmp_path, registry, kind):
    files = everything()
    told = judge(RunRecords.read(write_run(tmp_path / "run", files)), registry)
    assert [f.level for f in found(told, kind)] == ["note" if kind == "robustness" else "alarm"]


def test_what_got_worse_is_told_after_correction_over_all_metrics(verdict):
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


def test_among_many_measures_an_exact_p_stays_what_it_is():
    """Below the least that a bootstrap could come to, it is not one; 0.0015 for 40 measures is 0.06."""
    changes = {i: Difference(-0.08, -0.11, -0.05, p, better=False) for i, p in enumerate([0.0015] + [0.9] * 39)}
    assert got_worse(changes, 1000, dict.fromkeys(changes, 400)) == {}


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
    ("direction", "value", "level"),
    [(None, 0.2, "alarm"), (None, 0.1, "note"), (None, -0.2, "note"), (False, 0.2, "alarm"), (None, 0.06, None)],
)
def test_anybodys_calibration_metric_gets_the_finding_of_the_built_in_one(verdict, direction, value, level):
    told = verdict(calibrated("drift", {"label": "confidence drift", "higher_is_better": direction}, value))
    assert [f.level for f in found(told, "calibration")] == ([level] if level else [])
    assert all("confidence drift" in f.text for f in found(told, "calibration"))
    assert not found(told, "worse")  # its change is told by its own rule


def test_a_temperature_is_advised_where_it_helps(verdict):
    facts = {"temperature": 1.4, "ece": 0.2, "after": {"ece": 0.05}}
    (told,) = found(verdict(calibrated("drift", {"label": "drift"}, 0.2, **facts)), "calibration")
    assert "temperature of 1.40" in told.text
    assert "0.200 to 0.050" in told.text


@pytest.mark.parametrize("why", [{"temperature_at_edge": True}, {"temperature_from": 28}])
def test_no_temperature_is_advised_that_rests_on_nothing(verdict, why):
    facts = {"temperature": 1.4, "ece": 0.2, "after": {"ece": 0.05}, "temperature_from": 400}
    (told,) = found(verdict(calibrated("drift", {"label": "drift"}, 0.2, **facts | why)), "calibration")
    assert "temperature" not in told.text


@pytest.mark.parametrize(
    ("step", "told"),
    [(0.0005, "its training loss hardly fell ("), (-0.0005, "its training loss did not fall (")],
)
def test_a_loss_that_fell_within_the_noise_is_not_said_to_have_stood_still(verdict, step, told):
    (one,) = did_not_learn(verdict(flat(step), losses(*((0.69 - x / 500, None) for x in range(5)))))
    assert told in one.text
    assert ("a fall of less than 0.0" in one.text) == (step > 0)


def test_a_validation_loss_that_fell_is_learning_whatever_noisy_batches_say(verdict):
    assert not did_not_learn(verdict(flat(0), losses(*((0.69 - x / 50, None) for x in range(5)))))


def flat(step):
    def spoil(files):
        for i, line in enumerate(one for one in files["metrics"] if "loss" in one):
            line["loss"] = 0.69 - step * i / 10 + 0.02 * (i % 2)
        files["evaluation"]["difference"] = {"accuracy": change(0.0, better=None)}

    return spoil


def did_not_learn(told):
    return [f for f in found(told, "learning") if f.text.startswith("The model did not learn")]


def test_classes_without_a_held_out_example_are_named(verdict):
    def unseen(*names):
        classes = [*baseline([[130, 0, 0], [0, 130, 0], [0, 0, 140]])["classes"], *((name, 0, 0) for name in names)]
        return verdict(put("evaluation.details.tuned.classification.baseline.classes", classes))

    assert not found(unseen(), "classes")
    (one,) = found(unseen("rare"), "classes", "note")
    assert one.text == ("1 of 4 classes has no held-out example (rare): nothing is known of how well it is recognised.")
    (many,) = found(unseen(*"abcdefg"), "classes", "note")
    assert many.text.startswith("7 of 10 classes have no held-out example (a, b, c, d, e and 2 more): nothing")


class Always(Rule):
    """Finds something in every run."""

    name = "always"

    def judge(self, run):
        yield Finding(kind="own", level="alarm", text=f"{len(run.steps)} steps.")


def test_a_third_partys_rule_is_part_of_the_verdict(tmp_path):
    registry = Registry()
    entry = registry.get("rule", "better-than-base")
    registry._entries["rule"]["always"] = type(entry)("rule", Always, entry.origin)
    told = judge(RunRecords.read(write_run(tmp_path / "run", sound())), registry)
    assert [(f.kind, f.source, f.text) for f in told.findings[1:]] == [("own", "always", "100 steps.")]
    assert told.headline.startswith("One alarm, about own. Better than its base: ")


def test_the_verdict_is_a_function_of_the_files_and_is_written_beside_them(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run", everything()))
    written = conclude(run)
    assert Verdict.read(run) == written == verdict_of(run.path)
    assert (run.path / "report.html").is_file()


def test_an_unfinished_run_and_a_folder_without_one_are_refused(tmp_path):
    unfinished = write_run(tmp_path / "run", sound() | {"evaluation": None})
    with pytest.raises(RunError, match=r"not finished: it has no evaluation\.json"):
        verdict_of(unfinished)
    with pytest.raises(RunError, match="no run directory"):
        verdict_of(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("training", "steps", "many", "training.json': steps"),
        ("evaluation", "metrics", {"accuracy": {}}, "evaluation.json': metrics.accuracy"),
        ("audit", "warnings", [], "audit.json': warnings"),
    ],
)
def test_a_damaged_or_older_file_is_one_error_that_names_file_and_field(tmp_path, name, key, value, said):
    files = sound()
    files[name][key] = value
    with pytest.raises(RunError, match=said):
        verdict_of(write_run(tmp_path / "run", files))


def test_records_are_read_as_they_were_written(tmp_path):
    run = write_run(tmp_path / "run", everything())
    records = RunRecords.read(run)
    for record in (records.environment, records.audit, records.training, records.evaluation, records.examples):
        record.write(RunDirectory(run))
    assert json.dumps(RunRecords.read(run).evaluation.to_json()) == json.dumps(records.evaluation.to_json())
    assert records.trained.labels.names == LABELS


# Figures as words


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (0.9384, 0.0245, "0.938 (95 % interval 0.914 to 0.963)"),
        (1234.5, 100.0, "1,234 (95 % interval 1,134 to 1,334)"),
        (-0.05, 0.2, "−0.05 (95 % interval −0.25 to 0.15)"),
        (0.0012, 0.00115, "0.00120 (95 % interval 0.00005 to 0.00235)"),
    ],
)
def test_figures_have_the_digits_that_their_interval_supports(value, half, text):
    assert figures.with_interval(Estimate(value, value - half, value + half, 100)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.500"), (1234.5, "1,234"), (float("nan"), "–"), (-0.0001, "0.000")]
)
def test_figures_without_an_interval_have_three_digits(value, text):
    assert figures.with_interval(Estimate(value, None, None, 100)) == text


def test_what_has_no_interval_says_why():
    metrics = {"a": Metric("A", interval=False, instead="b"), "b": Metric("B")}
    both = {name: Estimate(0.1, None, None, n) for name, n in (("a", 100), ("b", 3))}
    assert figures.no_interval("a", metrics, both) == "no interval (see B)"
    assert figures.no_interval("b", metrics, both) == "too few examples to tell"


def test_finished_runs_of_a_folder_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("run10", "run9", "²", "unfinished"):
        (tmp_path / name / "adapter").mkdir(parents=True)
        if name != "unfinished":
            (tmp_path / name / "evaluation.json").touch()
    assert [path.name for path in runs_in(tmp_path)] == ["run9", "run10", "²"]
