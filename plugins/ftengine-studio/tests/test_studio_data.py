"""Rows as the model sees them, filtered by the server; marks become a file that the next run leaves out."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_llama

from ftengine import Experiment, Recipe, prepare_data
from ftengine.errors import RunError
from ftengine_studio import data
from ftengine_studio.data import EXCLUDED, MOST_ROWS, DataView, Rows, _differing
from ftengine_studio.judging import NotThere
from ftengine_studio.runs import find_runs


def test_filters_of_split_length_and_finding():
    rows = Rows(
        splits=["train", "test"],
        split=np.array([0, 0, 0, 1, 1]),
        number=np.array([0, 1, 2, 0, 1]),
        length=np.array([5, 10, 15, 20, 25]),
        groups={"duplicates": np.array([7, -1, 3, 7, 3])},
    )

    def chosen(split=None, least=None, most=None, finding=None, marked=()):
        return rows.chosen(split, least, most, finding, set(marked)).tolist()

    assert chosen() == [0, 1, 2, 3, 4]
    assert chosen("test") == [3, 4]
    assert chosen(least=10, most=20) == [1, 2, 3]
    assert chosen(finding="duplicates") == [2, 4, 0, 3]
    assert chosen("train", most=5, finding="duplicates") == [0, 3]  # with its partner in the other split
    assert chosen("train", finding="marked", marked={4, 1}) == [1]
    for wrong in ({"split": "dev"}, {"finding": "odd"}):
        with pytest.raises(NotThere):
            chosen(**wrong)


def test_several_examples_of_one_row_are_no_duplicates():
    text, row = np.array([4, 4, 4, 2, 2]), np.array([0, 1, 1, 7, 7])
    assert _differing(text, row).tolist() == [4, 4, 4, -1, -1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that was only planned, with copies, a leak and a contradiction in its data."""
    folder = tmp_path_factory.mktemp("data")
    asked = [(f"question {i} about {'word ' * (i % 7)}thing {i * i}", f"answer {i}") for i in range(60)]
    asked += [asked[0], asked[0], (asked[5][0], "something else")]
    long = " ".join(f"word{i}" for i in range(40))
    asked += [(f"{long} {end}", "the same answer") for end in ("morning", "evening")]  # near duplicates
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in asked]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = [rows[7], {**rows[9], "prompt": "x"}]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    recipe = {
        "model": {"source": str(tiny_llama(folder / "llama"))},
        "task": "causal-lm",
        "data": {
            "train": str(folder / "rows.jsonl"),
            "validation": 0.2,
            "test": str(folder / "test.jsonl"),
            "leaks": "warn",
        },
        "strategy": "lora",
    }
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text(json.dumps(recipe))
    return folder / "run"


@pytest.fixture(scope="module")
def view(run):
    view = DataView(find_runs([run])[0])
    while view.state()["state"] == "reading":
        time.sleep(0.05)
    return view


@pytest.mark.slow
def test_rows_are_shown_as_the_model_sees_them(view):
    state = view.state()
    assert state["state"] == "ready", state
    assert sum(state["splits"].values()) == 67
    assert state["counts"] == {"duplicates": 7, "leaks": 2, "contradictions": 2}
    row = next(row for row in view.page(limit=MOST_ROWS)["rows"] if row["place"].endswith("rows.jsonl:12"))
    assert "".join(text for text, trained in row["pieces"] if trained).startswith("answer 11")
    assert "question 11" in "".join(text for text, trained in row["pieces"] if not trained)


@pytest.mark.slow
def test_findings_of_runs_are_shown_in_columns(view, monkeypatch):
    leaked = view.page(finding="leaks")["rows"]
    assert {row["split"] for row in leaked} >= {"test"}
    assert len({row["group"] for row in leaked}) == 1
    contradicting = view.page(finding="contradictions")["rows"]
    assert sorted(row["place"].rpartition(":")[2] for row in contradicting) == ["6", "63"]
    assert len(view.page(offset=66)["rows"]) == 1
    assert len(view.page(limit=10**6)["rows"]) == 67
    monkeypatch.setattr(data, "MOST_ROWS", 10)  # however many there are, the page's memory is bounded
    assert len(view.page(limit=10**6)["rows"]) == 10


@pytest.mark.slow
def test_marked_rows_are_left_out_of_the_next_run(view, run, monkeypatch):
    before = (run.parent / "rows.jsonl").read_bytes()
    rows = view.page(split="train", limit=3)["rows"]
    for row in rows:
        assert not row["marked"]
        view.mark(row["row"], True, "Ada")
    assert view.mark(rows[0]["row"], False, "Ada")["marked"] == 2
    assert [row["place"] for row in view.page(finding="marked")["rows"]] == [row["place"] for row in rows[1:]]
    entries = [json.loads(line) for line in (run / EXCLUDED).read_text().splitlines()]
    assert [(entry["place"], entry["by"]) for entry in entries] == [(row["place"], "Ada") for row in rows[1:]]
    recipe = Recipe.read(run / "recipe.yaml", [f"data.exclude={run / EXCLUDED}"])
    prepared = prepare_data(Experiment.open(recipe, check_source=False))
    assert prepared.audit.splits["train"].excluded == 2
    assert sum(len(split) for split in prepared.encoded.values()) == 65
    assert (run.parent / "rows.jsonl").read_bytes() == before
    with pytest.raises(NotThere):
        view.mark(67, True, "Ada")
    kept = (run / EXCLUDED).read_bytes()

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RunError, match="No space left"):
            view.mark(rows[0]["row"], True, "Ada")
    assert ((run / EXCLUDED).read_bytes(), view.page()["rows"][0]["marked"]) == (kept, False)
    (run / EXCLUDED).write_text("{")
    with pytest.raises(RunError, match=EXCLUDED):
        view.page()
    (run / EXCLUDED).unlink()


@pytest.mark.slow
def test_data_that_cannot_be_read_is_reported(run, tmp_path):
    recipe = json.loads((run / "recipe.yaml").read_text())
    recipe["data"]["train"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(json.dumps(recipe))
    view = DataView(find_runs([tmp_path / "run"])[0])
    while (state := view.state())["state"] == "reading":
        time.sleep(0.05)
    assert state["state"] == "failed"
    assert "gone.jsonl" in state["message"]
    with pytest.raises(NotThere):
        view.page()


@pytest.mark.slow
def test_code_that_a_recipe_names_runs_only_if_it_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "named_by_recipe.py").write_text(
        "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
    )
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "row {i}"}}\n' for i in range(20)))
    recipe = {
        "model": {"source": "named_by_recipe:build", "loader": "callable"},
        "task": "causal-lm",
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "strategy": "lora",
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.syspath_prepend(str(tmp_path))
    for trusted in (False, True):
        view = DataView(find_runs([tmp_path / "run"])[0], trust_code=trusted)
        view.state()
        view._thread.join()
        assert ("--trust-code" in view.state()["message"]) is not trusted
        assert (tmp_path / "named_by_recipe.ran").exists() is trusted
