"""A model run over examples: what it says must be numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from expected import raises

from ftengine.api import SilentListener
from ftengine.errors import TrainingError
from ftengine.evaluation.runner import EvalResult, EvalRunner
from ftengine.evaluation.table import Writer


class Places:
    def where(self, row):
        return f"test.jsonl:{row + 1}"


class Split:
    lengths, index, rows = np.array([3, 2]), np.array([4, 7]), Places()

    def __len__(self):
        return 2

    def batch(self, members):
        return {"members": torch.tensor(members)}


def said(**prediction):
    said = lambda module, batch: [dict(prediction) for _ in batch["members"]]  # noqa: E731
    task = SimpleNamespace(predicts=frozenset(), predict=said)
    loaded = SimpleNamespace(module=torch.nn.Identity())
    runner = EvalRunner(Accelerator(cpu=True), loaded, task, 2, 0, 2, SilentListener(), "base")
    return list(runner.predictions(Split(), "evaluate base"))


@pytest.mark.parametrize("prediction", [{"logits": [0.0, float("nan")]}, {"loss": float("inf")}])
def test_predictions_that_are_no_numbers_are_refused_with_their_place(prediction):
    key = next(iter(prediction))
    with raises(TrainingError, f"model's {key} ", "test.jsonl:5", "float32"):
        said(**prediction)


def test_tables_have_no_names_that_a_killed_process_would_leave(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("ftengine.evaluation.table.ROWS", 2)
    writer, result, one = Writer([]), EvalResult(), SimpleNamespace(name="test")
    for member in range(5):
        writer.put(member, {"score": member}, {})
    assert not list(tmp_path.iterdir())
    result.put(one, writer.finish().append_column("row", [range(5)]))
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        assert result.predictions(one).columns["score"].tolist() == [0, 1, 2, 3, 4]


def test_finite_predictions_pass_with_their_members():
    assert [member for member, _, _ in said(logits=[0.0, 1.0], label=1, text="x")] == [0, 1]
