"""What is measured beside base and tuned on the held-out split: slices, probes, single examples."""

import json
import random
import threading
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from ftengine import fine_tune, load_run
from ftengine.api import Evaluator, ExampleScores, Metric, SilentListener, TextAugmenter
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Job
from ftengine.engine.fine_tune import require_room
from ftengine.errors import DataError, InputError, RecipeError
from ftengine.evaluation.examples import SHOWN
from ftengine.plugins.discovery import make_plugin_manager
from ftengine.plugins.hookspecs import hookimpl
from ftengine.plugins.registry import Registry

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
    with pytest.MonkeyPatch.context() as patch:  # so little training changes scores by less than what is worth a look
        patch.setattr("ftengine.evaluation.examples.NOISE", 0.0)
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


def test_the_whole_is_judged_by_the_exact_test_that_its_slices_are_judged_by(sliced_run):
    evaluation = sliced_run.evaluation
    assert evaluation["difference"]["accuracy"]["p"] == evaluation["paired"]["p"]
    assert evaluation["difference"]["nll"]["p"] != evaluation["paired"]["p"]


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


def test_tables_of_both_models_are_kept(sliced_run):
    folder = sliced_run.path / "predictions"
    for side in ("base", "tuned"):
        table = pq.read_table(folder / f"test-{side}.parquet").to_pandas()
        accuracy = sliced_run.evaluation[side]["accuracy"]
        assert (table["label"] == table["predicted"]).mean() == pytest.approx(accuracy["value"])
        assert table["group"].nunique() == accuracy["n"]
        assert table["row"].is_monotonic_increasing
        assert table["place"].str.match(r".*sliced\.jsonl:\d+$").all()
        assert set(table["slice.region"]) <= {"a", "b", "(missing)"}
    assert {path.stem for path in folder.glob("*-tuned.parquet")} >= {"test-tuned", "training-tuned"}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"evaluation__slices": ["regoin"]}, RecipeError, r"evaluation\.slices: .* has no column 'regoin' .*label"),
        ({"evaluation__robustness": ["mixup"]}, RecipeError, r"evaluation\.robustness\.0: augmenter 'mixup' mixes"),
        ({"evaluation__robustness": ["flip"]}, RecipeError, r"evaluation\.robustness\.0: .*changes images"),
        ({"evaluation__forgetting": "nowhere.jsonl"}, DataError, r"evaluation\.forgetting: .*nowhere\.jsonl"),
        ({"evaluation__memorisation": {}}, RecipeError, r"evaluation\.memorisation: evaluator 'memorisation' reads"),
        (
            {"evaluation__refusal": "nowhere.jsonl"},
            RecipeError,
            r"evaluation\.refusal: .*It needs a task that writes text: .*causal-lm",
        ),
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
    monkeypatch.setattr(Job, "load_model", lambda self: pytest.fail("the model was loaded"))
    with pytest.raises(error, match=message):
        fine_tune(label_recipe(**settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluation__slices": ["regoin"]}, "has no column 'regoin'"),
        (
            {"evaluation__robustness": ["keybord"]},
            r"\(recipe key evaluation\.robustness\.0\.name\)\. Did you mean 'keyboard'",
        ),
        ({"evaluation__robustness": [{"name": "keyboard", "rat": 1}]}, r"evaluation\.robustness\.0\.rat'"),
    ],
)
def test_names_options_and_columns_are_checked_before_anything_is_encoded(label_recipe, monkeypatch, settings, message):
    monkeypatch.setattr(Job, "encode", lambda *args: pytest.fail("rows were encoded"))
    with pytest.raises(InputError, match=message):
        fine_tune(label_recipe(**settings))


def test_a_plan_says_what_is_measured(label_recipe):
    from ftengine.cli.plan import _evaluation
    from ftengine.engine.plan import plan

    settings = {"evaluation__slices": ["label"], "evaluation__robustness": ["keyboard"]}
    found = plan(label_recipe(**settings), measure=False).evaluation
    held = found["examples"]
    assert held > 1
    assert (found["split"], found["slices"]) == ("test", ["label"])
    assert [(one["kind"], one["name"], one["examples"]) for one in found["probes"]] == [
        ("robustness", "keyboard", held)
    ]
    lines = _evaluation(found)
    assert lines[0].startswith(f"base and tuned on test ({held} examples): ")
    assert "classification" in lines[0]
    assert "training rows" in lines[0]
    assert lines[1] == "slices by label"
    assert lines[2].startswith("robustness: keyboard on ")


@pytest.mark.parametrize("rows", ["text", "all"])
def test_robustness_is_refused_where_a_change_is_to_be_predicted_too(chat_recipe, tmp_path, rows):
    from ftengine.engine.plan import plan

    settings = {"evaluation__robustness": ["keyboard"], "task__loss_on": "all"}
    if rows == "text":
        data = write_rows(tmp_path / "t.jsonl", [{"text": f"a sentence of several words {i}"} for i in range(40)])
        settings = {"evaluation__robustness": ["keyboard"], "data__train": data}
    with pytest.raises(RecipeError, match=r"robustness\.0: augmenter 'keyboard' changes .* to predict \(.*:\d"):
        plan(chat_recipe(**settings), measure=False)


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
    assert kinds["memorisation"]["held_out"].keys() == {"base", "tuned"}
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
    metrics = {"even": Metric("even", higher_is_better=True)}  # noqa: RUF012
    seen = None

    def fit(self, rows):
        self.seen = 0 if rows is None else len(rows["tokens"])

    def example_scores(self, rows):
        even = (rows["tokens"] % 2 == 0).astype(float)
        return ExampleScores(even, even)

    def score(self, rows, weights):
        return {next(iter(self.metrics)): np.average(rows["tokens"] % 2 == 0, weights=weights)}

    def details(self, rows, estimate):
        yield "seen", self.seen


class Shout(TextAugmenter):
    """Write user turns in capitals."""

    name = "shout"

    def change(self, text, rng):
        return text.upper()


class Plugin:
    @staticmethod
    def ftengine_evaluators():
        return [Even]

    @staticmethod
    def ftengine_augmenters():
        return [Shout]


def test_evaluators_fit_to_each_model_on_validation_where_test_is_held_out(chat_recipe):
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


@pytest.fixture(scope="module")
def filed_run(bert_folder, tmp_path_factory):
    """A run whose splits are files of their own, with labels b and c in each."""
    from ftengine import Recipe

    folder = tmp_path_factory.mktemp("filed")
    files = {
        name: write_rows(
            folder / f"{name}.jsonl", [{"text": f"{name} {i}", "label": "bc"[i % 2]} for i in range(count)]
        )
        for name, count in (("train", 24), ("validation", 20), ("test", 20))
    }
    return fine_tune(
        Recipe.make(
            {
                "model": {"source": str(bert_folder)},
                "task": "text-classification",
                "data": {**files, "near_duplicates": None},
                "strategy": "full",
                "train": {"max_steps": 1, "batch_size": 8, "precision": "float32"},
                "evaluation": {"resamples": 100},
                "output": str(folder / "run"),
            }
        )
    )


class Messages(SilentListener):
    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_split_that_changed_since_is_not_used(filed_run, name, monkeypatch):
    """A label that came since, and sorts before the others, must not renumber them either."""
    from pathlib import Path

    from ftengine.data import split

    monkeypatch.setattr(split, "audit_splits", lambda *args, **named: pytest.fail("the data was audited again"))
    file, listener = Path(getattr(filed_run.recipe.data, name)), Messages()
    before = file.read_text()
    file.write_text(before + "".join(json.dumps({"text": f"new {i}", "label": "a"}) + "\n" for i in range(3)))
    try:
        run = load_run(filed_run.path, listener=listener)
        if name == "test":
            with pytest.raises(DataError, match=r"data files changed since .* its test split"):
                run.evaluate()
            return
        found = run.evaluate()
    finally:
        file.write_text(before)
    assert any(f"{name} rows have changed" in text for text in listener.said)
    assert found["tuned"]["accuracy"] == filed_run.evaluation["tuned"]["accuracy"]
    assert found["tuned"]["nll"] == filed_run.evaluation["tuned"]["nll"]
    assert (found["training"] is None) == (name == "train")
    temperatures = [one["details"]["tuned"]["calibration"].get("temperature") for one in (filed_run.evaluation, found)]
    assert temperatures[0] is not None
    assert (temperatures[1] == temperatures[0]) == (name == "train")


def test_new_data_is_measured_without_reading_the_runs_own_where_nothing_asks_for_it(filed_run, monkeypatch, tmp_path):
    from ftengine.engine import finished

    data = write_rows(tmp_path / "new.jsonl", [{"text": f"new {i}", "label": "bc"[i % 2]} for i in range(8)])
    run = load_run(filed_run.path)
    run.recipe.evaluation.training_sample = None
    run.recipe.task["kind"] = "single"
    monkeypatch.setattr(finished, "make_splits", lambda *args, **named: pytest.fail("the splits were made"))
    monkeypatch.setattr(
        "ftengine.engine.experiment.Job.evaluators",
        lambda self: [self.registry.build("evaluator", "classification", "")],
    )
    assert run.evaluate(data)["tuned"]["accuracy"]["n"] == 8


@pytest.mark.parametrize("where", ["evaluate", "general"])
def test_evaluators_refuse_rows_that_they_cannot_read_before_the_model_loads(
    chat_recipe, chat_file, monkeypatch, where, tmp_path
):
    rows = [{**json.loads(line), "grade": i % 5} for i, line in enumerate(chat_file.read_text().splitlines())]
    good = write_rows(tmp_path / "good.jsonl", rows)
    rows[17]["grade"] = "B"
    bad = write_rows(tmp_path / "bad.jsonl", rows)
    monkeypatch.setattr(Job, "load_model", lambda self: pytest.fail("the model was loaded"))
    settings = {"data__test": bad, "data__leaks": "warn"} if where == "evaluate" else {"evaluation__forgetting": bad}
    key = "evaluate" if where == "evaluate" else r"evaluation\.forgetting"
    recipe = chat_recipe(data__train=good, evaluate=["graded"], **settings)
    with pytest.raises(DataError, match=rf"^{key}: .*bad\.jsonl:18: `grade` is 'B'"):
        fine_tune(recipe, registry=Registry(make_plugin_manager({"test-plugin": MorePlugin})))


class Graded(Even):
    """Reads a column that has to hold numbers; holds a lock, which cannot be copied."""

    name = "graded"
    metrics = {"graded": Metric("graded", higher_is_better=True)}  # noqa: RUF012
    columns = frozenset({"grade"})

    def __init__(self, config=None):
        super().__init__(config)
        self.lock = threading.Lock()

    def check_row(self, row):
        if not isinstance(row["grade"], int):
            raise DataError(f"`grade` is {row['grade']!r}; a number is needed.")


class Longer(TextAugmenter):
    """Say it four times."""

    name = "longer"

    def change(self, text, rng):
        return " ".join([text] * 4)


class MorePlugin:
    @staticmethod
    @hookimpl
    def ftengine_evaluators():
        return [Graded]

    @staticmethod
    @hookimpl
    def ftengine_augmenters():
        return [Longer]


def test_an_evaluator_that_cannot_be_copied_measures_both_models(chat_recipe, chat_file, tmp_path):
    rows = [{**json.loads(line), "grade": 1} for line in chat_file.read_text().splitlines()]
    recipe = chat_recipe(
        data__train=write_rows(tmp_path / "graded.jsonl", rows), evaluate=["graded"], train__max_steps=1
    )
    run = fine_tune(recipe, registry=Registry(make_plugin_manager({"test-plugin": MorePlugin})))
    assert run.evaluation["tuned"]["graded"] == run.evaluation["base"]["graded"]


def test_changed_examples_that_outgrow_the_model_are_measured_as_they_stand(label_recipe):
    """The model's room is known only when it is loaded, after the probes were planned."""
    recipe = label_recipe(evaluation__robustness=["longer"])
    job = Job.open(recipe, Registry(make_plugin_manager({"test-plugin": MorePlugin})))
    splits = job.read_data()
    job.load_skeleton()
    encoded = job.encode(splits)
    evaluating = evaluation_plan(job, encoded, splits)
    (changed,) = [probe.examples.split for probe in evaluating.probes]
    longest, row = encoded["test"].longest, changed.rows[int(changed.index[0])]
    assert changed.batch(np.array([0]))["input_ids"].shape[1] > longest
    assert changed.example(0)["text"] == " ".join([row["text"]] * 4)
    longest = max(split.longest for split in encoded.values())
    require_room(SimpleNamespace(max_length=longest), [*encoded.values(), *evaluating.encoded()])
    assert changed.batch(np.array([0]))["input_ids"].shape[1] <= longest
    assert changed.example(0) == row  # what is answered, and whose columns are read, is what is predicted of
    with pytest.raises(RecipeError, match=f"the longest example has {longest} tokens"):
        require_room(SimpleNamespace(max_length=longest - 1), [*encoded.values(), *evaluating.encoded()])
