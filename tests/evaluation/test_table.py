"""The table of predictions: what goes in comes out, by evaluator, and what cannot go in is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from expected import raises
from partly import partly

from ftengine.api import Evaluator
from ftengine.errors import PluginError, RunError
from ftengine.evaluation.table import MEMBER, Predictions, Writer, judged, merged


@partly
class Words(Evaluator):
    """Keeps the number of words."""

    name = "words"

    def keep(self, prediction):
        return {"n": len(prediction["text"].split())}


def written(rows, evaluators=()):
    writer = Writer()
    for member, row in rows:
        writer.put(member, row)
    return judged(writer.finish(), evaluators, lambda member: {"expect": f"e{member}"})


def test_parts_of_several_processes_are_joined_in_order(tmp_path, monkeypatch):
    """Row groups of two; a column that holds only nulls at first, and lists of any length."""
    monkeypatch.setattr("ftengine.evaluation.table.ROWS", 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = [
        (i, {"text": "a " * (i + 1), "scores": [i, 0.5], "tags": [1] * i, "reference": None if i < 4 else "r"})
        for i in range(9)
    ]
    table = merged([written(rows[::-1][rank::2], [Words()]) for rank in range(2)])
    assert table[MEMBER].to_pylist() == list(range(9))
    found = Predictions.of(table.append_column("row", table[MEMBER]))
    seen = found.rows(Words())
    assert seen.keys() == {"text", "scores", "tags", "reference", "expect", "n"}
    assert seen["n"].tolist() == [i + 1 for i in range(9)]
    assert seen["scores"].shape == (9, 2)
    assert seen["tags"].tolist() == [[1] * i for i in range(9)]
    assert seen["reference"].tolist() == [None] * 4 + ["r"] * 5
    assert found.prediction(3) == {
        "text": "a a a a ",
        "scores": [3, 0.5],
        "tags": [1] * 3,
        "reference": None,
        "expect": "e3",
    }
    without = Predictions({name: column for name, column in found.columns.items() if name != "words.n"})
    assert without.keeping(Words()).rows(Words())["n"].tolist() == seen["n"].tolist()
    assert not list(tmp_path.iterdir())


def test_groups_of_joined_tables_stay_apart():
    parts = [
        Predictions({"row": np.arange(3), "group": np.array(groups), "tags": tags})
        for groups, tags in (([0, 1, 0], np.ones((3, 2))), ([1, 0, 1], np.ones((3, 4))))
    ]
    whole = Predictions.join(parts)
    assert whole.groups.tolist() == [0, 1, 0, 3, 2, 3]
    assert [len(tags) for tags in whole.columns["tags"]] == [2, 2, 2, 4, 4, 4]


def test_missing_numbers_are_nan_also_in_lists(tmp_path):
    pq.write_table(pa.table({"row": [0, 1], "x": [None, 2], "v": [[1.0, 2.0], None]}), tmp_path / "t.parquet")
    columns = Predictions.read(tmp_path / "t.parquet").columns
    np.testing.assert_equal(columns["x"], [np.nan, 2])
    np.testing.assert_equal(columns["v"], [[1, 2], [np.nan, np.nan]])


def test_what_cannot_be_kept_or_read_is_named(tmp_path):
    with raises(PluginError, "group"):
        written([(0, {"group": 1})])
    with raises(PluginError, "'x'"):
        written([(0, {"x": 1}), (1, {"x": "one"})])
    with raises(RunError, "t.parquet"):
        Predictions.read(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_text("no table")
    with pytest.raises(RunError):
        Predictions.read(tmp_path / "t.parquet")
