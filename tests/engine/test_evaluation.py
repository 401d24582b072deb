"""What is measured beside base and tuned on the held-out split: slices, probes, single examples."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from measuring_plugin import with_plugin
from rows import sentences, write_rows

from ftengine import Recipe, fine_tune, load_run


@pytest.fixture(scope="module")
def sliced_file(tmp_path_factory):
    """120 labelled sentences with a column `region`, in one row of which it is missing."""
    rng = random.Random(0)
    rows = [{**row, "region": rng.choice("aab")} for row in sentences(120, rng, length=5)]
    rows[7]["region"] = None
    return write_rows(tmp_path_factory.mktemp("data") / "sliced.jsonl", rows)


@pytest.fixture(scope="module")
def sliced_run(bert_folder, sliced_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sliced")
    general = write_rows(folder / "general.jsonl", [{"text": f"match {i}", "label": "sport"} for i in range(40)])
    recipe = Recipe.make(
        {
            "model": {"source": str(bert_folder)},
            "task": "text-classification",
            "data": {"train": sliced_file, "validation": 0.15, "test": 0.35},
            "strategy": "full",
            "train": {"epochs": 2, "batch_size": 8, "learning_rate": 0.002, "precision": "float32"},
            "evaluation": {
                "resamples": 100,
                "slices": ["region"],
                "small_slice": 5,
                "robustness": [{"name": "keyboard", "rate": 0.3}],
                "forgetting": {"data": general, "limit": 25},
            },
            "output": str(folder / "run"),
        }
    )
    with pytest.MonkeyPatch.context() as patch:  # so little training changes scores by less than what is worth a look
        patch.setattr("ftengine.evaluation.examples.NOISE", 0.0)
        return fine_tune(recipe)


def rows_of(run):
    """Return the run's held-out rows, each with the answer of `predict`."""
    places = pq.read_table(run.path / "predictions" / "test-tuned.parquet")["place"].to_pylist()
    lines = Path(run.recipe.data.train).read_text().splitlines()
    rows = [json.loads(lines[int(place.rpartition(":")[2]) - 1]) for place in places]
    answers = run.predict([{"text": row["text"]} for row in rows])
    return [(row, answer["label"]) for row, answer in zip(rows, answers, strict=True)]


@pytest.mark.slow
def test_figures_of_slices_are_those_of_their_rows(sliced_run):
    found = sliced_run.evaluation["slices"]["region"]
    answered = rows_of(sliced_run)
    for one in found["slices"]:
        mine = [row["label"] == label for row, label in answered if (row["region"] or "(missing)") == one["value"]]
        assert one["examples"] == len(mine)
        assert one["tuned"]["accuracy"]["value"] == pytest.approx(np.mean(mine))
    assert sum(one["examples"] for one in found["slices"]) == len(answered)
    assert {"a", "b"} <= {one["value"] for one in found["slices"]}


@pytest.mark.slow
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


def test_evaluate_measures_what_training_did(sliced_run):
    again = load_run(sliced_run.path).evaluate()
    assert json.loads(json.dumps(again)) == sliced_run.evaluation


@pytest.mark.slow
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
    assert evaluation["tuned"]["loss"]["n"] == 8
    kinds = {probe["kind"]: probe for probe in evaluation["probes"]}
    assert (kinds["memorisation"]["examples"], kinds["refusal"]["examples"]) == (5, 4)
    assert kinds["memorisation"]["held_out"].keys() == {"base", "tuned"}
    assert kinds["memorisation"]["against"]
    assert evaluation["paired"]["evaluator"] == "generation"
    items = run.directory.read_json("examples.json")
    assert items["evaluator"] == "generation"
    again = run.evaluate()
    assert again["tuned"] == evaluation["tuned"]


@pytest.mark.slow
def test_evaluators_fit_to_each_model_on_validation_where_test_is_held_out(chat_recipe):
    registry = with_plugin()
    settings = {"train__max_steps": 1, "evaluate": ["even"], "evaluation__robustness": ["shout"]}
    recipe = chat_recipe(**settings, data__test=0.2)
    run = fine_tune(recipe, registry=registry)
    seen = run.directory.read_json("audit.json")["encoded"]["validation"]["examples"]
    assert [run.evaluation["details"][side]["even"]["seen"] for side in ("base", "tuned")] == [seen, seen]
    assert [probe["name"] for probe in run.evaluation["probes"]] == ["shout"]
    without = fine_tune(chat_recipe(**settings, output=recipe.output + "-2"), registry=registry)
    assert without.evaluation["details"]["tuned"]["even"]["seen"] == 0
