"""What audits found is taken from before where the data, the audits and all else are what they were."""

import json

import pytest

from ftengine.engine import audits
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import prepare_data


@pytest.fixture
def looked(monkeypatch, tmp_path):
    """Whether the audits looked at the data, each time that they might have."""
    monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path / "own"))
    run, times = audits.run_audits, []

    def counting(*given):
        times.append(1)
        return run(*given)

    def ask(recipe):
        times.clear()
        return prepare_data(Experiment.open(recipe)).audit, bool(times)

    monkeypatch.setattr(audits, "run_audits", counting)
    return ask


@pytest.mark.parametrize("task", ["chat", "label"])
def test_the_same_data_are_looked_at_once(looked, request, task):
    recipe = request.getfixturevalue(f"{task}_recipe")
    found, first = looked(recipe())
    kept, again = looked(recipe(train__learning_rate=0.1))
    assert (first, again) == (True, False)
    assert found.findings
    assert found.displays
    assert kept == found
    assert kept.model_dump(mode="json") == found.model_dump(mode="json")


def row(i: int) -> str:
    turns = [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]
    return json.dumps({"messages": turns})


def test_other_rows_places_or_divisions_are_looked_at(looked, chat_recipe, tmp_path):
    file, rows, asked = tmp_path / "rows.jsonl", [row(i) for i in range(40)], []
    options = {"data__train": str(file), "data__validation": 0.2, "data__test": 0.2}
    for lines in (rows, ["", *rows], [*rows, rows[0]], rows[::-1], rows):
        file.write_text("\n".join(lines))
        asked.append(looked(chat_recipe(**options))[1])
    assert asked == [True, True, True, True, False]
    assert looked(chat_recipe(**options, seed=7))[1]
    assert looked(chat_recipe(**options | {"data__test": 0.3}))[1]


def test_other_code_is_asked(looked, chat_recipe, monkeypatch):
    looked(chat_recipe())
    monkeypatch.setattr(audits, "code_of", lambda _: {"a": "2"})
    assert looked(chat_recipe())[1]
    assert not looked(chat_recipe())[1]


def test_audits_of_other_distributions_are_asked_each_time(looked, chat_recipe, monkeypatch):
    found, _ = looked(chat_recipe())
    monkeypatch.setattr(audits, "BUILT_IN", "another")
    again, asked = looked(chat_recipe())
    assert asked
    assert again == found
    assert looked(chat_recipe())[1]
