"""`ftengine tune`: rungs on validation, the test split once, going on after an interruption, wrong input."""

import json
import shutil

import pytest
import yaml
from click.testing import CliRunner
from expected import raises
from runs import Heard

from ftengine import Recipe, Run, fine_tune, load_run
from ftengine.errors import BaseMismatch, InputError, TrainingError
from ftengine.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture
def content(llama_folder, answers):
    """A recipe that trains in a second."""
    return {
        "model": {"source": str(llama_folder)},
        "task": "causal-lm",
        "data": {"train": str(answers), "validation": 0.25, "test": 0.25},
        "strategy": {"name": "lora", "rank": 4},
        "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.005, "precision": "float32"},
        "evaluation": {"resamples": 100},
    }


@pytest.fixture
def looks(monkeypatch):
    """The files on which finished runs were measured."""
    found, evaluate = [], Run.evaluate

    def counting(run, data=None, **options):
        found.append(data)
        return evaluate(run, data, **options)

    monkeypatch.setattr(Run, "evaluate", counting)
    return found


def tuned(content, folder, **options):
    from ftengine_tune import tune

    return tune(Recipe.make({**content, "output": str(folder)}), **{"trials": 3, **options})


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def taught(monkeypatch):
    """The runs that trained, and their steps, as folder and step."""
    steps, train = [], Trainer.step

    def counting(trainer, members):
        train(trainer, members)
        steps.append((trainer.setup.run.path.name, trainer.progress.step))

    monkeypatch.setattr(Trainer, "step", counting)
    return steps


RATES = "0.0001,0.02,0.00001"
"""Of which one trains."""


def rates():
    from ftengine_tune.space import parse

    return [parse("train.learning_rate", RATES, "")]


def test_trials_never_see_the_test_split_and_the_best_sees_it_once(content, answers, looks, tmp_path):
    found = tuned(content, tmp_path / "tuned")
    parts = {name: rows(tmp_path / "tuned" / "division" / f"{name}.jsonl") for name in ("train", "validation", "test")}
    assert sorted(map(str, rows(answers))) == sorted(str(row) for part in parts.values() for row in part)
    best = load_run(found.of(found.best).run)
    assert best.evaluation["split"] == "validation"
    audit = json.loads((best.path / "audit.json").read_text(encoding="utf-8"))
    counts = {name: split["rows"] for name, split in audit["splits"].items()}
    assert counts == {"train": len(parts["train"]), "validation": len(parts["validation"])}
    assert found.of(found.best).loss == pytest.approx(min(line.get("validation_loss", 9e9) for line in best.metrics))
    assert looks == [tmp_path / "tuned" / "division" / "test.jsonl"]
    assert found.examples == len(parts["validation"])
    assert found.trials[0].values["train.learning_rate"] == content["train"]["learning_rate"]
    assert "which was measured once" in found.statement
    assert tuned(content, tmp_path / "tuned") == found  # nothing is left to do
    assert len(looks) == 1


def test_trials_surely_behind_are_dropped_and_train_no_further(content, taught, tmp_path):
    content["data"]["train"] = str(tmp_path / "rows.jsonl")
    lines = [
        json.dumps({"prompt": f"What is {a} + {b}?", "completion": f"{a + b}"}) for a in range(9) for b in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    content["train"] |= {"learning_rate": 0.02, "epochs": 3}
    found = tuned(content, tmp_path / "tuned", space=rates())
    first, _, last = found.trials[0].steps
    assert (found.best, found.ended, found.rungs[0].dropped) == (1, "one left", [2, 3])
    assert {name for name, step in taught if step > first} == {"001"}
    assert sorted(step for name, step in taught if name == "001") == list(range(1, last + 1))
    assert found.of(2).dropped.behind == 1
    assert found.of(2).dropped.difference > 0
    assert found.share == pytest.approx((2 * first + last) / (3 * last))
    resumed = fine_tune(Recipe.read(tmp_path / "tuned" / "trials" / "002" / "recipe.yaml"), resume=True)  # a run
    assert resumed.evaluation["split"] == "validation"


def test_a_search_ends_if_trials_do_not_differ_significantly(content, taught, tmp_path):
    from ftengine_tune.space import parse

    found = tuned(content, tmp_path / "tuned", space=[parse("train.keep_checkpoints", "2,3,4", "")])
    assert found.ended == "not told apart"
    assert len(found.rungs) == 2
    assert len(found.not_told_apart) == 2
    assert "cannot be told apart" in found.statement
    _, second, last = found.trials[0].steps
    assert sum(step > second for _, step in taught) == last - second


def test_the_best_recipe_trains_the_same_model(content, tmp_path):
    found = tuned(content, tmp_path / "tuned", trials=2)
    run = fine_tune(Recipe.read(tmp_path / "tuned" / "best.yaml"))
    assert run.evaluation["split"] == "test"
    trial = load_run(found.of(found.best).run)
    name = "adapter_model.safetensors"
    assert (run.trained / name).read_bytes() == (trial.trained / name).read_bytes()
    assert run.evaluation["tuned"][found.tested.metric]["value"] == found.tested.tuned.value


@pytest.mark.parametrize("calls", [2, 5, 7])  # at each rung
def test_an_interrupted_search_comes_to_what_a_whole_one_does(calls, content, taught, tmp_path, monkeypatch):
    from runs import Interrupting, Interruption

    from ftengine_tune import trial
    from ftengine_tune.space import parse

    space = [parse("train.keep_checkpoints", "2,3,4", "")]  # by which trials do not differ, so that all go on
    whole = tuned(content, tmp_path / "whole", space=space)
    trained, train, left = sorted(taught), trial.fine_tune, [calls]

    def interrupted(recipe, **options):
        left[0] -= 1
        return train(recipe, **(options | {"listener": Interrupting(0)} if left[0] == 0 else options))

    monkeypatch.setattr(trial, "fine_tune", interrupted)
    taught.clear()
    with pytest.raises(Interruption):
        tuned(content, tmp_path / "parts", space=space)
    found = tuned(content, tmp_path / "parts", space=space)
    facts = [(one.values, one.loss, one.rung, one.state) for one in found.trials]
    assert facts == [(one.values, one.loss, one.rung, one.state) for one in whole.trials]
    assert found.rungs == whole.rungs
    assert sorted(taught) == trained  # beside the step that was lost


def test_a_failed_trial_is_reported_and_the_others_go_on(content, tmp_path, monkeypatch):
    from ftengine_tune import trial

    train, calls, heard = trial.fine_tune, [], Heard()

    def failing(recipe, **options):
        calls.append(recipe)
        if len(calls) == 2:
            raise TrainingError("the loss is not finite.")
        return train(recipe, **options)

    def always_failing(recipe, **options):
        raise TrainingError("the loss is not finite.")

    monkeypatch.setattr(trial, "fine_tune", failing)
    found = tuned(content, tmp_path / "tuned", listener=heard)
    assert found.of(2).state == "failed"
    assert found.of(2).reason == "the loss is not finite."
    assert found.rungs[0].compared == [1, 3]
    assert any("trial 2 of 3" in text and "failed: the loss is not finite" in text for text in heard.said)
    assert "1 trial failed" in found.statement
    monkeypatch.setattr(trial, "fine_tune", always_failing)
    with raises(TrainingError, "no trial is left", "not finite"):
        tuned(content, tmp_path / "all", trials=2)


def test_time_that_is_up_leaves_the_best_one_trained_to_its_end(content, tmp_path, monkeypatch):
    from ftengine_tune.budget import Budget

    monkeypatch.setattr(Budget, "allows", lambda self, trials, rung: len(trials) < 2 and rung == 1)
    found = tuned(content, tmp_path / "tuned", minutes=60)
    assert (found.ended, len(found.trials), len(found.rungs)) == ("time", 2, 1)
    assert "Time was up before 3 trials had begun" in found.statement
    assert load_run(found.of(found.best).run).verdict
    with raises(InputError, "--minutes"):
        tuned(content, tmp_path / "new" / "tuned", minutes=1e-5)
    assert not (tmp_path / "new").exists()


def test_a_classifier_is_tested_by_its_metric(bert_folder, reviews, content, tmp_path):
    content |= {"model": {"source": str(bert_folder)}, "task": "text-classification"}
    content["data"] |= {"train": str(reviews), "split": "stratified"}
    found = tuned(content, tmp_path / "tuned", trials=2)
    assert (found.tested.metric, found.tested.higher_is_better) == ("accuracy", True)


@pytest.mark.parametrize("key", ["epochs", "batch_size"])
def test_trials_of_different_lengths_are_compared_at_the_same_share(key, content, tmp_path):
    from ftengine_tune.space import parse

    found = tuned(content, tmp_path / "tuned", space=[parse(f"train.{key}", "2,4", "")])
    lengths = {trial.values[f"train.{key}"]: trial.steps for trial in found.trials}
    assert len({steps[-1] for steps in lengths.values()}) == len(lengths)


@pytest.mark.parametrize("shape", ["folder", "relative paths"])
def test_images_are_found_from_the_division(shape, content, tmp_path, monkeypatch):
    from PIL import Image
    from tiny import tiny_vit

    monkeypatch.chdir(tmp_path)
    lines = []
    for label, shade in (("dark", 20), ("light", 220)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (32, 32), (shade + i, shade, shade)).save(tmp_path / "images" / label / f"{i}.png")
            lines.append(json.dumps({"image": f"{label}/{i}.png", "label": label}))
    (tmp_path / "images" / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = "images" if shape == "folder" else "images/rows.jsonl"
    if shape == "folder":
        (tmp_path / "images" / "rows.jsonl").unlink()
    content |= {"model": {"source": str(tiny_vit(tmp_path / "vit"))}, "task": "image-classification"}
    content["data"] |= {"train": source, "split": "stratified"}
    content["data"]["near_duplicates"] = None
    found = tuned(content, "tuned", trials=2)
    assert found.tested.metric == "accuracy"
    assert found.tested.tuned.n == 4


def test_a_named_reader_reads_the_data_and_not_the_division(content, tmp_path):
    lines = ["question;answer", *(f"What is {a} + {b}?;It is {a + b}." for a in range(4) for b in range(5))]
    (tmp_path / "sums.csv").write_text("\n".join(lines), encoding="utf-8")
    columns = {"prompt": "question", "completion": "answer"}
    content["data"] |= {"train": str(tmp_path / "sums.csv"), "reader": "csv", "columns": columns}
    assert tuned(content, tmp_path / "tuned", trials=2).best in (1, 2)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"validation": None}, {}, "data.validation is null"),
        ({"test": None}, {}, "--no-test"),
        ({"train": [{"source": f"{name}.jsonl", "weight": 0.5} for name in "ab"]}, {}, "with weights"),
        ({"train": "missing.jsonl"}, {}, "missing.jsonl"),
        ({}, {"trials": 1}, "--trials 1"),
    ],
)
def test_wrong_input_is_refused_before_anything_trains(changes, options, message, content, tmp_path, no_weights):
    content["data"] |= changes
    with raises(InputError, message) as raised:
        tuned(content, tmp_path / "new" / "tuned", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()


def test_a_task_without_losses_of_single_examples_is_refused(bert_folder, content, tmp_path):
    pairs = [json.dumps({"anchor": f"question {i}", "positive": f"answer {i}"}) for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs), encoding="utf-8")
    content |= {"model": {"source": str(bert_folder)}, "task": "embedding"}
    content["data"] |= {"train": str(tmp_path / "pairs.jsonl"), "near_duplicates": None}
    with raises(InputError, "'embedding'", "loss"):
        tuned(content, tmp_path / "tuned")
    assert not list((tmp_path / "tuned").iterdir())


def test_a_folder_of_another_search_is_refused(content, tmp_path):
    from ftengine_tune.space import parse

    tuned(content, tmp_path / "tuned", trials=2, test=False)
    with raises(InputError, "the ranges", "--trials"):
        tuned(content, tmp_path / "tuned", space=[parse("strategy.rank", "1..4", "")])
    content["seed"] = 7
    with raises(InputError, "seed"):
        tuned(content, tmp_path / "tuned", trials=2)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine", encoding="utf-8")
    with raises(InputError, "other files"):
        tuned(content, tmp_path / "used")
    (tmp_path / "tuned" / "tune.json").write_text("{", encoding="utf-8")
    with raises(InputError, "tune.json"):
        tuned(content, tmp_path / "tuned", trials=2)


def test_the_command(content, tmp_path, monkeypatch):
    from ftengine_tune.command import tune

    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    asked = ["recipe.yaml", "--trials", "2", "--set-range", "train.learning_rate=1e-3..1e-2:log", "--output", "tuned"]
    result = CliRunner().invoke(tune, asked, catch_exceptions=False)
    assert result.exit_code == 0
    assert "Of 2 trials, number" in " ".join(result.stdout.split())
    assert "2 trials of up to" in result.stderr
    assert "trial 2 of 2, step" in result.stderr
    result = CliRunner().invoke(tune, [*asked, "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert [one["key"] for one in found["space"]] == ["train.learning_rate"]
    assert found["trials"][0]["values"] == {"train.learning_rate": 0.005}
    with raises(InputError, "KEY=RANGE"):
        CliRunner().invoke(tune, ["recipe.yaml", "--trials", "2", "--set-range", "rank"], catch_exceptions=False)


def test_trials_on_another_base_are_not_compared(content, llama_folder, tmp_path, monkeypatch):
    from ftengine_tune import trial

    folder, train, calls = shutil.copytree(llama_folder, tmp_path / "base"), trial.fine_tune, []

    def changing(recipe, **options):
        calls.append(recipe)
        if len(calls) == 2:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}), encoding="utf-8")
        return train(recipe, **options)

    monkeypatch.setattr(trial, "fine_tune", changing)
    content |= {"model": {"source": str(folder)}}
    with raises(BaseMismatch, "hidden_act", "'silu'", "'relu'"):
        tuned(content, tmp_path / "tuned", trials=2)
