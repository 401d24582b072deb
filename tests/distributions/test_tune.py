"""`ftengine tune`: trials on validation, the test split once, going on after an interruption, wrong input."""

import json
import shutil

import pytest
import yaml
from click.testing import CliRunner
from expected import raises
from runs import Heard

from ftengine import Recipe, Run, fine_tune, load_run
from ftengine.errors import BaseMismatch, InputError, TrainingError

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
    from ftengine_optuna import tune

    return tune(Recipe.make({**content, "output": str(folder)}), **{"trials": 4, **options})


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_trials_never_see_the_test_split_and_the_best_sees_it_once(content, answers, looks, tmp_path):
    found = tuned(content, tmp_path / "tuned")
    parts = {name: rows(tmp_path / "tuned" / "division" / f"{name}.jsonl") for name in ("train", "validation", "test")}
    assert sorted(map(str, rows(answers))) == sorted(str(row) for part in parts.values() for row in part)
    for trial in found.trials:
        run = load_run(trial.run)
        assert run.evaluation["split"] == "validation"
        audit = json.loads((run.path / "audit.json").read_text(encoding="utf-8"))
        counts = {name: split["rows"] for name, split in audit["splits"].items()}
        assert counts == {"train": len(parts["train"]), "validation": len(parts["validation"])}
        assert trial.figure.value == run.evaluation["tuned"]["loss"]["value"]
    assert looks == [tmp_path / "tuned" / "division" / "test.jsonl"]
    assert len(found.trials) == 4
    best = min(found.trials, key=lambda trial: trial.figure.value)
    assert found.best == best.number
    assert found.as_written == 1
    assert [one.trial for one in found.tested] == [best.number]
    assert "which was measured once" in found.statement
    assert "luckiest of 4" in found.statement
    assert tuned(content, tmp_path / "tuned").tested == found.tested  # nothing is left to do
    assert len(looks) == 1


def test_the_best_recipe_trains_the_same_model(content, tmp_path):
    found = tuned(content, tmp_path / "tuned", trials=2)
    run = fine_tune(Recipe.read(tmp_path / "tuned" / "best.yaml"))
    assert run.evaluation["split"] == "test"
    trial = load_run(found.of(found.best).run)
    name = "adapter_model.safetensors"
    assert (run.trained / name).read_bytes() == (trial.trained / name).read_bytes()
    assert run.evaluation["tuned"]["loss"]["value"] == found.tested[0].tuned.value


def test_an_interrupted_search_comes_to_what_a_whole_one_does(content, tmp_path, monkeypatch):
    from runs import Interrupting, Interruption

    from ftengine_optuna import search

    whole = tuned(content, tmp_path / "whole")
    train, calls = search.fine_tune, []

    def interrupted(recipe, **options):
        calls.append(recipe)
        return train(recipe, **(options | {"listener": Interrupting(1)} if len(calls) == 3 else options))

    monkeypatch.setattr(search, "fine_tune", interrupted)
    with pytest.raises(Interruption):
        tuned(content, tmp_path / "parts")
    found = tuned(content, tmp_path / "parts")
    assert [(trial.values, trial.figure) for trial in found.trials] == [(t.values, t.figure) for t in whole.trials]
    assert len(calls) == 5
    assert calls[2].output == calls[3].output


def test_further_trials_report_that_the_test_split_was_measured_before(content, looks, tmp_path):
    from ftengine_optuna.space import parse

    content["train"]["learning_rate"] = 1e-7  # hardly trains, so that any other is better
    space = [parse("train.learning_rate", "1e-7..1e-2:log", "")]
    tuned(content, tmp_path / "tuned", trials=1, space=space)
    found = tuned(content, tmp_path / "tuned", trials=3, space=space)
    assert len(found.tested) == len(looks) == 2
    assert "was measured 2 times, each after further trials" in found.statement
    assert "optimistic" in found.statement


def test_a_failed_trial_is_reported_and_the_others_go_on(content, tmp_path, monkeypatch):
    from ftengine_optuna import search

    train, calls, heard = search.fine_tune, [], Heard()

    def failing(recipe, **options):
        calls.append(recipe)
        if len(calls) == 2:
            raise TrainingError("the loss is not finite.")
        return train(recipe, **options)

    def always_failing(recipe, **options):
        raise TrainingError("the loss is not finite.")

    monkeypatch.setattr(search, "fine_tune", failing)
    found = tuned(content, tmp_path / "tuned", trials=3, listener=heard)
    assert [trial.state for trial in found.trials] == ["finished", "failed", "finished"]
    assert found.of(2).reason == "the loss is not finite."
    assert any("trial 2 of 3" in text and "failed: the loss is not finite" in text for text in heard.said)
    assert "1 further one failed" in found.statement
    monkeypatch.setattr(search, "fine_tune", always_failing)
    with raises(TrainingError, "none of 2 trials"):
        tuned(content, tmp_path / "all", trials=2)


def test_a_classifier_is_tuned_by_its_metric(bert_folder, reviews, content, tmp_path):
    content |= {"model": {"source": str(bert_folder)}, "task": "text-classification"}
    content["data"] |= {"train": str(reviews), "split": "stratified"}
    found = tuned(content, tmp_path / "tuned", trials=2, metric="accuracy")
    assert (found.metric, found.higher_is_better) == ("accuracy", True)
    assert found.of(found.best).figure.value == max(trial.figure.value for trial in found.trials)
    with raises(InputError, "acuracy", "accuracy"):
        tuned(content, tmp_path / "other", trials=2, metric="acuracy")


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
    found = tuned(content, "tuned", trials=1)
    assert found.metric == "accuracy"
    assert found.tested[0].tuned.n == 4


def test_a_named_reader_reads_the_data_and_not_the_division(content, tmp_path):
    lines = ["question;answer", *(f"What is {a} + {b}?;It is {a + b}." for a in range(4) for b in range(5))]
    (tmp_path / "sums.csv").write_text("\n".join(lines), encoding="utf-8")
    columns = {"prompt": "question", "completion": "answer"}
    content["data"] |= {"train": str(tmp_path / "sums.csv"), "reader": "csv", "columns": columns}
    assert tuned(content, tmp_path / "tuned", trials=1).best == 1


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"validation": None}, {}, "data.validation is null"),
        ({"test": None}, {}, "--no-test"),
        ({"train": "missing.jsonl"}, {}, "missing.jsonl"),
        ({}, {"metric": "acc"}, "'acc'"),
    ],
)
def test_wrong_input_is_refused_before_anything_trains(changes, options, message, content, tmp_path, no_weights):
    content["data"] |= changes
    with raises(InputError, message) as raised:
        tuned(content, tmp_path / "new" / "tuned", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_another_search_is_refused(content, tmp_path):
    from ftengine_optuna.space import parse

    tuned(content, tmp_path / "tuned", trials=1, test=False)
    with raises(InputError, "the ranges"):
        tuned(content, tmp_path / "tuned", space=[parse("strategy.rank", "1..4", "")])
    content["seed"] = 7
    with raises(InputError, "seed"):
        tuned(content, tmp_path / "tuned")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine", encoding="utf-8")
    with raises(InputError, "other files"):
        tuned(content, tmp_path / "used")


def test_a_search_that_broke_off_at_once(content, tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "trials.log").write_text("", encoding="utf-8")
    with raises(InputError, "trials.log"):
        tuned(content, tmp_path / "tuned")


def test_a_trial_without_all_its_values_is_proposed_again(content, tmp_path):
    from ftengine_optuna.search import _begun

    tuned(content, tmp_path / "tuned", trials=1)
    _begun(tmp_path / "tuned" / "trials.log").ask()  # and ends before values are asked for
    found = tuned(content, tmp_path / "tuned", trials=2)
    assert [trial.number for trial in found.trials] == [1, 3]


def test_the_command(content, tmp_path, monkeypatch):
    from ftengine_optuna.command import tune

    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    asked = ["recipe.yaml", "--trials", "2", "--set-range", "train.learning_rate=1e-3..1e-2:log", "--output", "tuned"]
    result = CliRunner().invoke(tune, asked, catch_exceptions=False)
    assert result.exit_code == 0
    assert "Of 2 trials, number" in " ".join(result.stdout.split())
    assert "trial 2 of 2: learning_rate" in result.stderr
    result = CliRunner().invoke(tune, [*asked, "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert [one["key"] for one in found["space"]] == ["train.learning_rate"]
    assert found["trials"][0]["values"] == {"train.learning_rate": 0.005}
    with raises(InputError, "KEY=RANGE"):
        CliRunner().invoke(tune, ["recipe.yaml", "--trials", "2", "--set-range", "rank"], catch_exceptions=False)


def test_trials_on_another_base_are_not_set_beside_the_others(content, llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "base")
    content |= {"model": {"source": str(folder)}}
    tuned(content, tmp_path / "tuned", trials=1)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}), encoding="utf-8")
    with raises(BaseMismatch, "hidden_act", "'silu'", "'relu'"):
        tuned(content, tmp_path / "tuned", trials=2)
