"""What a run is expected to take."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ftengine.training.estimate import estimate


@pytest.mark.parametrize("processes", [1, 4])
def test_processes_share_the_tokens(monkeypatch, processes):
    monkeypatch.setattr("ftengine.training.estimate._step", lambda *_: (2.0, 0.5, 1.2, 100))
    loaded, train = SimpleNamespace(module=torch.nn.Linear(4, 4)), SimpleNamespace(lengths=np.full(8, 10))
    accelerator = SimpleNamespace(num_processes=processes)
    found = estimate(
        accelerator, loaded, None, [], train, 2, train_tokens=400.0, evaluate_tokens=800.0, state_bytes=160
    )
    assert found.train_seconds == pytest.approx(20 * 2.0 / processes)  # 20 tokens in two seconds, at once by each
    assert found.evaluate_seconds == pytest.approx(40 * 0.5 / processes)
    assert found.backward_share == pytest.approx(0.6)
    assert found.peak_bytes == 20 * 4 + 20 * 12 + 100
