"""What is measured beside base and tuned on the held-out split: slices, probes, single examples."""

import json
import random

import numpy as np
import pytest

from ftengine import fine_tune, load_run
from ftengine.api import Augmenter, Evaluator, Judgement
from ftengine.errors import DataError, InputError, RecipeError
from ftengine.evaluation.judgements import SHOWN
from ftengine.evaluation.results import read_sums
from ftengine.parameters import read_tensors
from ftengine.plugins import make_plugin_manager
from ftengine.registry import Registry
from ftengine.run import RunDirectory

WORDS = {"film": "actor scene music", "money": "profit shares bank", "sport": "goal match team"}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def sliced_file(tmp_path_factory):
    """120 labelled sentences with a column `region`, in one row of which it is missing."""
    rng = random.Random(0)
    rows = []
    for i in range(120):
        label = sorted(WORDS)[i % 3]
        text = " ".join(rng.choice(WORDS[label].split()) for _ in range(5))
        rows.append({"text": f"{text} {i}", "label": label, "region": None if i == 7 else rng.choice("aab")})
    return write_rows(tmp_path_factory.mktemp("data") / "sliced.jsonl", rows)


SETTINGS = {
    "data__validation": 0.15,
    "data__test": 0.35,
    "train__epochs": 2,
    "evaluation__slices": ["region"],
    "evaluation__small_slice": 5,
    "evaluation__robustness": [{"name": "keyboard", "rate": 0.3}],
}


@pytest.fixture(scope="module")
def sliced_run(bert_folder, sliced_file, tmp_path_factory):
    from ftengine import Recipe

    folder = tmp_path_factory.mktemp("sliced")
    general = write_rows(folder / "general.jsonl", [{"text": f"match {i}", "label": "sport"} for i in range(40)])
    recipe = Recipe.make(
        {
            "model": {"source": str(bert_folder)},
            "task": "text-classification",
            "data": {"train": sliced_file},
            "strategy": "full",
            "train": {"batch_size": 8, "learning_rate": 0.002, "precision": "float32"},
            "evaluation": {"resamples": 100, "forgetting": {"data": general, "limit": 25}},
            "output": str(folder / "run"),
        },
        [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in SETTINGS.items()],
    )
    return fine_tune(recipe)


def rows_of(run):
    """Return the answers of the tuned model to the run's held-out rows, from `predict`."""
    job = run.open_job()
    rows = list(job.read_data().test)
    answers = run.predict([{"text": row["text"]} for row in rows])
    return [(row, answer["label"]) for row, answer in zip(rows, answers, strict=True)]


def test_figures_of_slices_are_those_of_their_rows(sliced_run):
    found = sliced_run.evaluation["slices"]["region"]
    answered = rows_of(sliced_run)
    for one in found["slices"]:
        mine = [row["label"] == label for row, label in answered if (row["region"] or "(missing)") == one["value"]]
        assert one["examples"] == len(mine)
        assert one["tuned"]["accuracy"]["value"] == pytest.approx(np.mean(mine))
    assert sum(one["examples"] for one in found["slices"]) == len(answered)
    assert {"a", "b"} <= {one["value"] for one in found["slices"]}


def test_the_changed_examples_are_measured_and_set_against_the_same_unchanged(sliced_run):
    probe = next(p for p in sliced_run.evaluation["probes"] if p["kind"] == "robustness")
    evaluation = sliced_run.evaluation
    assert (probe["name"], probe["examples"]) == ("keyboard", evaluation["tuned"]["accuracy"]["n"])
    for metric in ("accuracy", "nll"):
        change = probe["tuned"][metric]["value"] - evaluation["tuned"][metric]["value"]
        assert probe["against"][metric]["value"] == pytest.approx(change, abs=1e-9)
    assert probe["tuned"]["nll"]["value"] != evaluation["tuned"]["nll"]["value"]


def test_forgetting_is_measured_on_some_of_the_general_examples(sliced_run):
    probe = next(p for p in sliced_run.evaluation["probes"] if p["kind"] == "forgetting")
    assert probe["examples"] == 25
    assert probe["data"].endswith("general.jsonl")
    assert set(probe["tuned"]) == set(probe["base"]) == set(probe["difference"])


def test_a_sample_of_training_is_measured_too(sliced_run):
    training = sliced_run.evaluation["training"]
    assert training["n"] == sliced_run.directory.read_json("audit.json")["encoded"]["train"]["examples"]
    judged = training["judged"]
    assert judged["evaluator"] == "classification"
    right = [right for _, right, _ in judged["rows"]]
    assert np.mean(right) == pytest.approx(training["tuned"]["accuracy"]["value"])


def test_the_paired_table_adds_up_to_both_accuracies(sliced_run):
    evaluation = sliced_run.evaluation
    paired, n = evaluation["paired"], evaluation["tuned"]["accuracy"]["n"]
    assert paired["both"] + paired["only_base"] + paired["only_tuned"] + paired["neither"] == n
    for side in ("base", "tuned"):
        assert (paired["both"] + paired[f"only_{side}"]) / n == pytest.approx(evaluation[side]["accuracy"]["value"])


def test_examples_that_changed_most_show_both_answers(sliced_run):
    content = sliced_run.directory.read_json("examples.json")
    assert content["evaluator"] == "classification"
    for key, sign in (("improved", 1), ("worse", -1)):
        changes = [sign * (item["tuned_score"] - item["base_score"]) for item in content[key]]
        assert all(change > 0 for change in changes)
        assert changes == sorted(changes, reverse=True)
        assert len(changes) <= SHOWN
    item = content["improved"][0]
    assert item["place"].partition(".jsonl:")[2].isdigit()
    assert item["tuned"]["label"] in WORDS
    assert item["shown"]


def test_evaluate_measures_what_training_did(sliced_run):
    again = load_run(sliced_run.path).evaluate()
    assert json.loads(json.dumps(again)) == sliced_run.evaluation


def test_other_data_without_the_column_has_no_slices(sliced_run, tmp_path):
    data = write_rows(tmp_path / "new.jsonl", [{"text": f"team {i}", "label": "sport"} for i in range(12)])
    found = load_run(sliced_run.path).evaluate(data)
    assert found["slices"] == {}
    assert [probe["kind"] for probe in found["probes"]] == ["robustness", "forgetting"]
    assert found["training"]["n"] == sliced_run.evaluation["training"]["n"]


def test_sums_of_both_models_are_kept(sliced_run):
    run = RunDirectory(sliced_run.path)
    job = sliced_run.open_job()
    from ftengine.api import EvaluationContext

    context = EvaluationContext(job.task.name, job.task.labels)
    for which in ("base", "tuned"):
        sums = read_sums(run, job.evaluators(), context, seed=0, which=which)
        assert sums.results()["accuracy"].value == sliced_run.evaluation[which]["accuracy"]["value"]
        assert sums.results()["accuracy"].low == sliced_run.evaluation[which]["accuracy"]["low"]
    assert "base.predictions.distinct" in read_tensors(sliced_run.path / "evaluation.safetensors")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"evaluation__slices": ["regoin"]}, RecipeError, r"evaluation\.slices: .* has no column 'regoin' .*label"),
        ({"evaluation__robustness": ["mixup"]}, RecipeError, r"evaluation\.robustness\.0: augmenter 'mixup' mixes"),
        ({"evaluation__robustness": ["flip"]}, RecipeError, r"evaluation\.robustness\.0: .*changes images"),
        ({"evaluation__forgetting": "nowhere.jsonl"}, DataError, r"evaluation\.forgetting: .*nowhere\.jsonl"),
        ({"evaluation__memorisation": {}}, RecipeError, r"evaluation\.memorisation: evaluator 'memorisation' reads"),
        ({"evaluation__refusal": "nowhere.jsonl"}, RecipeError, r"evaluation\.refusal: evaluator 'refusal' reads"),
        ({"evaluation__generate": {"max_new_token": 3}}, InputError, r"evaluation\.generate: .*max_new_token"),
        (
            {"evaluation__slices": ["label"], "data__validation": None, "data__test": None},
            RecipeError,
            r"evaluation\.slices looks at held-out examples",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_model_loads(
    label_recipe, monkeypatch, settings, error, message, tmp_path
):
    from ftengine.job import Job

    monkeypatch.setattr(Job, "load_model", lambda self: pytest.fail("the model was loaded"))
    with pytest.raises(error, match=message):
        fine_tune(label_recipe(**settings))
    assert not (tmp_path / "run").exists()


def test_general_data_with_another_label_is_refused_with_its_place(label_recipe, tmp_path):
    data = write_rows(tmp_path / "general.jsonl", [{"text": "x", "label": "weather"}])
    with pytest.raises(DataError, match=r"evaluation\.forgetting: .*general\.jsonl:1: .*'weather'"):
        fine_tune(label_recipe(evaluation__forgetting=data))


def test_memorisation_refusal_and_answers_of_a_language_model(chat_recipe, tmp_path):
    prompts = write_rows(
        tmp_path / "prompts.jsonl",
        [{"messages": [{"role": "user", "content": f"How do I break in ({i})?"}]} for i in range(4)],
    )
    run = fine_tune(
        chat_recipe(
            train__epochs=1,
            evaluate=["generation"],
            evaluation__memorisation={"examples": 5},
            evaluation__refusal=prompts,
            evaluation__generate={"limit": 3, "max_new_tokens": 4},
        )
    )
    evaluation = run.evaluation
    answered = {name for name, figure in evaluation["tuned"].items() if figure["n"] == 3}
    assert "exact_match" in answered
    assert evaluation["tuned"]["loss"]["n"] == 12
    kinds = {probe["kind"]: probe for probe in evaluation["probes"]}
    assert (kinds["memorisation"]["examples"], kinds["refusal"]["examples"]) == (5, 4)
    assert kinds["memorisation"]["details"]["held_out"].keys() == {"base", "tuned"}
    assert kinds["memorisation"]["against"]
    assert evaluation["paired"]["evaluator"] == "generation"
    items = run.directory.read_json("examples.json")
    assert items["evaluator"] == "generation"
    again = run.evaluate()
    assert again["tuned"] == evaluation["tuned"]


class Even(Evaluator):
    """Share of tokens whose number is even: judges, and fits."""

    name = "even"
    reads = frozenset({"tokens"})
    higher_is_better = {"even": True}  # noqa: RUF012
    fits = True
    seen = None

    def fit(self, predictions):
        self.seen = None if predictions is None else sum(1 for _ in predictions)

    def judge(self, prediction):
        return Judgement(float(prediction["tokens"] % 2 == 0), prediction["tokens"] % 2 == 0)

    def statistics(self, prediction):
        return float(prediction["tokens"] % 2 == 0), 1.0, float(self.seen or 0)

    def metrics(self, sums):
        return {"even": sums[..., 0] / sums[..., 1]}

    def details(self, sums, counts):
        return {"seen": sums[2] / sums[1]}


class Shout(Augmenter):
    """Write user turns in capitals, after the text as it is."""

    name = "shout"
    modality = "text"

    def augment(self, example, rng):
        yield self.task.rewrite(example, str.upper)


class Plugin:
    @staticmethod
    def ftengine_evaluators():
        return [Even]

    @staticmethod
    def ftengine_augmenters():
        return [Shout]


def test_evaluators_fit_to_each_model_on_validation_where_test_is_held_out(chat_recipe):
    from ftengine.hookspecs import hookimpl

    class Marked:
        ftengine_evaluators = staticmethod(hookimpl(Plugin.ftengine_evaluators))
        ftengine_augmenters = staticmethod(hookimpl(Plugin.ftengine_augmenters))

    registry = Registry(make_plugin_manager({"test-plugin": Marked}))
    settings = {"train__max_steps": 1, "evaluate": ["even"], "evaluation__robustness": ["shout"]}
    recipe = chat_recipe(**settings, data__test=0.2)
    run = fine_tune(recipe, registry=registry)
    seen = run.directory.read_json("audit.json")["encoded"]["validation"]["examples"]
    assert [run.evaluation["details"][side]["even"]["seen"] for side in ("base", "tuned")] == [seen, seen]
    assert [probe["name"] for probe in run.evaluation["probes"]] == ["shout"]
    without = fine_tune(chat_recipe(**settings, output=recipe.output + "-2"), registry=registry)
    assert without.evaluation["details"]["tuned"]["even"]["seen"] == 0
