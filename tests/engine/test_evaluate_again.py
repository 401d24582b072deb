"""A finished run evaluated again: on splits that have changed since, and on new data alone."""

import json
from pathlib import Path

import pytest
from expected import raises
from rows import write_rows
from runs import Heard

from ftengine import Recipe, fine_tune, load_run
from ftengine.errors import DataError


@pytest.fixture(scope="module")
def filed_run(bert_folder, tmp_path_factory):
    """A run whose splits are files of their own, with labels b and c in each."""
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_split_that_changed_since_is_not_used(filed_run, name):
    """A label that came since, and sorts before the others, must not renumber them either."""
    file, listener = Path(getattr(filed_run.recipe.data, name)), Heard()
    before = file.read_text()
    file.write_text(before + "".join(json.dumps({"text": f"new {i}", "label": "a"}) + "\n" for i in range(3)))
    try:
        run = load_run(filed_run.path, listener=listener)
        if name == "test":
            with raises(DataError, "data files"):
                run.evaluate()
            return
        found = run.evaluate()
    finally:
        file.write_text(before)
    assert any(f"its {name} rows are no longer the same" in text for text in listener.said)
    assert found["tuned"]["accuracy"] == filed_run.evaluation["tuned"]["accuracy"]
    assert found["tuned"]["nll"] == filed_run.evaluation["tuned"]["nll"]
    assert (found["training"] is None) == (name == "train")
    temperatures = [one["details"]["tuned"]["calibration"].get("temperature") for one in (filed_run.evaluation, found)]
    assert temperatures[0] is not None
    assert (temperatures[1] == temperatures[0]) == (name == "train")


@pytest.mark.slow
def test_new_data_is_measured_without_reading_the_runs_own_where_nothing_asks_for_it(chat_recipe, chat_file, tmp_path):
    rows = chat_file.read_text()
    (tmp_path / "new.jsonl").write_text("".join(rows.splitlines(keepends=True)[:8]))
    for sample, told in ((None, False), (64, True)):
        own = tmp_path / f"own-{sample}.jsonl"
        own.write_text(rows)
        settings = {"evaluation__training_sample": sample, "train__max_steps": 1, "output": str(tmp_path / own.stem)}
        run = fine_tune(chat_recipe(data__train=str(own), **settings))
        own.unlink()
        heard = Heard()
        found = load_run(run.path, listener=heard).evaluate(tmp_path / "new.jsonl")
        assert found["tuned"]["loss"]["n"] == 8
        assert any("the run's own data cannot be read" in text for text in heard.said) == told
