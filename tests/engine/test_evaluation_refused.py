"""What cannot be measured is refused before weights are read; a plan says what is measured."""

import json

import pytest
from expected import raises
from measuring_plugin import with_plugin
from rows import write_rows

from ftengine import fine_tune, plan
from ftengine.cli.plan import _evaluation
from ftengine.errors import DataError, InputError, RecipeError
from ftengine_builtins.tasks.text_classification import TextClassification


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"evaluation__slices": ["regoin"]}, RecipeError, "'regoin'"),
        ({"evaluation__robustness": ["mixup"]}, RecipeError, "evaluation.robustness.0: augmenter 'mixup'"),
        ({"evaluation__robustness": ["flip"]}, RecipeError, "evaluation.robustness.0: "),
        ({"evaluation__forgetting": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ({"evaluation__memorisation": {}}, RecipeError, "evaluation.memorisation: "),
        ({"evaluation__refusal": "nowhere.jsonl"}, RecipeError, "evaluation.refusal: "),
        ({"evaluation__generate": {"max_new_token": 3}}, InputError, "max_new_token"),
        (
            {"evaluation__slices": ["label"], "data__validation": None, "data__test": None},
            RecipeError,
            "evaluation.slices",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_model_loads(
    label_recipe, no_weights, settings, error, message, tmp_path
):
    with raises(error, message):
        fine_tune(label_recipe(**settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluation__slices": ["regoin"]}, "'regoin'"),
        ({"evaluation__robustness": ["keybord"]}, "'keyboard'"),
        ({"evaluation__robustness": [{"name": "keyboard", "rat": 1}]}, "'evaluation.robustness.0.rat'"),
    ],
)
def test_names_options_and_columns_are_checked_before_anything_is_encoded(label_recipe, monkeypatch, settings, message):
    monkeypatch.setattr(TextClassification, "encode", lambda *_, **__: pytest.fail("a row was encoded"))
    with raises(InputError, message):
        fine_tune(label_recipe(**settings))


def test_a_plan_says_what_is_measured(label_recipe):
    settings = {"evaluation__slices": ["label"], "evaluation__robustness": ["keyboard"]}
    settings["evaluation__training_sample"] = 20
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
    settings = {"evaluation__robustness": ["keyboard"], "task__train_on": "all"}
    if rows == "text":
        data = write_rows(tmp_path / "t.jsonl", [{"text": f"a sentence of several words {i}"} for i in range(40)])
        settings = {"evaluation__robustness": ["keyboard"], "data__train": data}
    with raises(RecipeError, "robustness.0", "'keyboard'"):
        plan(chat_recipe(**settings), measure=False)


@pytest.mark.parametrize("where", ["evaluate", "general"])
def test_evaluators_refuse_rows_that_they_cannot_read_before_the_model_loads(
    chat_recipe, chat_file, no_weights, where, tmp_path
):
    rows = [{**json.loads(line), "grade": i % 5} for i, line in enumerate(chat_file.read_text().splitlines())]
    good = write_rows(tmp_path / "good.jsonl", rows)
    rows[17]["grade"] = "B"
    bad = write_rows(tmp_path / "bad.jsonl", rows)
    settings = {"data__test": bad, "data__leaks": "warn"} if where == "evaluate" else {"evaluation__forgetting": bad}
    key = "evaluate" if where == "evaluate" else "evaluation.forgetting"
    recipe = chat_recipe(data__train=good, evaluate=["graded"], **settings)
    with raises(DataError, key, "bad.jsonl:18: `grade` is 'B'"):
        fine_tune(recipe, registry=with_plugin())
