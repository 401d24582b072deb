"""A model run over examples: what it says must be numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from expected import raises

from ftengine.api import SilentListener, Task
from ftengine.errors import TrainingError
from ftengine.evaluation.runner import EvalRunner


class Places:
    def where(self, row):
        return f"test.jsonl:{row + 1}"


class Split:
    rows = Places()

    def __init__(self, lengths=(3, 2)):
        self.lengths, self.index = np.array(lengths), np.arange(4, 4 + 3 * len(lengths), 3)

    def __len__(self):
        return len(self.lengths)

    def batch(self, members):
        return {"members": torch.tensor(members)}


def predicted(predict, split, batch_size=2, together=2, tokens=0):
    class Told(Task):
        predicts = frozenset()

    Told.__abstractmethods__ = frozenset()
    Told.predict, sizes = staticmethod(predict), (batch_size, together, tokens, 2)
    loaded = SimpleNamespace(module=torch.nn.Identity(), inference_paths=())
    runner = EvalRunner(Accelerator(cpu=True), loaded, Told(), *sizes, SilentListener(), "base")
    return list(runner.predictions(split, "evaluate base"))


def said(**prediction):
    return predicted(lambda module, batch: [dict(prediction) for _ in batch["members"]], Split())


@pytest.mark.parametrize("prediction", [{"logits": [0.0, float("nan")]}, {"loss": float("inf")}])
def test_predictions_that_are_no_numbers_are_refused_with_their_place(prediction):
    key = next(iter(prediction))
    with raises(TrainingError, f"model's {key} ", "test.jsonl:5", "float32"):
        said(**prediction)


def test_finite_predictions_pass_with_their_members():
    assert [member for member, _ in said(logits=[0.0, 1.0], label=1, text="x")] == [0, 1]
