"""A run on rows that belong together: groups from the data to the tables, the figures and the verdict."""

import json
import random

import pyarrow.parquet as pq
import pytest
from rows import sentences, write_rows
from runs import Heard

from ftengine import fine_tune, load_run


@pytest.fixture
def grouped_run(label_recipe, tmp_path):
    """Train on sentences of 15 patients, and measure on others of nine, who share one; return the run and its talk."""
    rows = [{**row, "patient": i % 15} for i, row in enumerate(sentences(60, random.Random(0)))]
    rows.append({**rows[0], "patient": 20})
    held = [{**row, "patient": 30 + i // 5} for i, row in enumerate(sentences(40, random.Random(1)))]
    held += [{**held[0], "patient": 99}, held[7]]
    general = [{"text": row["text"], "label": row["label"]} for row in sentences(12, random.Random(2))]
    recipe = label_recipe(
        data={
            "train": write_rows(tmp_path / "train.jsonl", rows),
            "test": write_rows(tmp_path / "test.jsonl", held),
            "validation": 0.2,
            "group": "patient",
            "near_duplicates": None,
        },
        train={"max_steps": 2},
        evaluation__forgetting=write_rows(tmp_path / "general.jsonl", general),
        evaluation__slices=["label"],
        evaluation__training_sample=20,
    )
    heard = Heard()
    return fine_tune(recipe, listener=heard), heard


def test_groups_of_the_data_reach_tables_figures_and_verdict(grouped_run):
    run, heard = grouped_run
    table = pq.read_table(run.path / "predictions" / "test-tuned.parquet").to_pandas()
    # Patients 30 to 37 with five rows each; 99 has a row of 30's, and the eighth row is there twice.
    assert sorted(table.groupby("group").size()) == [*[5] * 6, 6, 6]
    assert table["duplicate"].nunique() == 40
    assert table.groupby("duplicate")["group"].nunique().max() == 1
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    assert {(one["n"], one["rows"]) for one in evaluation["tuned"].values()} == {(8, 42)}
    assert evaluation["paired"]["p"] is None
    assert sum(evaluation["paired"][key] for key in ("both", "only_base", "only_tuned", "neither")) == 40
    assert {one["n"] for one in evaluation["training"]["tuned"].values()} <= set(range(6, 17))
    assert all(one["small"] for one in evaluation["slices"]["label"]["slices"])
    (forgetting,) = evaluation["probes"]
    assert {(one["n"], one["rows"]) for one in forgetting["tuned"].values()} == {(12, None)}
    assert any("has no column 'patient'" in text for text in heard.said)
    small = next(one for one in run.verdict.findings if one.figures.get("rows"))
    assert "8 groups (42 rows)" in small.text
    assert "approximate" in small.text


def test_what_is_measured_later_is_measured_by_group_as_well(grouped_run):
    run, _ = grouped_run
    before = json.loads((run.path / "evaluation.json").read_text())
    again = load_run(run.path).evaluate(evaluators=["classification"])
    assert again["difference"]["accuracy"] == before["difference"]["accuracy"]
    assert again["tuned"]["accuracy"] == before["tuned"]["accuracy"]
