"""What a run is expected to take."""

import mmap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ftengine import registry_of
from ftengine.data.batching import epoch_batches
from ftengine.run.environment import peak_memory_bytes
from ftengine.run.recipe import TrainSection
from ftengine.testing import training_context
from ftengine.training.estimate import Trial, estimate
from ftengine.training.fast_paths import FastPaths
from ftengine.training.memory import available_bytes
from ftengine.training.steps import plan_steps

MIB = 1 << 20
WEIGHTS = 20 * 4 + 8 * 4


class Costly:
    """A task whose loss takes 10 ms and a MiB for each token, padding included, and moves running statistics."""

    name, seconds = "costly", 0.0

    def loss(self, model, batch, criterion):
        self.seconds += 0.01 * batch["tokens"]
        # From the system: the heap may have room that was used before, and the process then grows by nothing.
        kept = torch.frombuffer(mmap.mmap(-1, batch["tokens"] * MIB), dtype=torch.float32).fill_(1)
        return model(torch.ones(2, 4)).sum() + 0 * kept.sum(), 1.0


class Split:
    """Examples of 10, 20 and 30 tokens, eight of each."""

    lengths = np.repeat([10, 20, 30], 8)

    def epoch(self, *settings):
        return epoch_batches(self.lengths, *settings)

    def batch(self, members, epoch):
        return {"tokens": int(self.lengths[members].max()) * len(members)}


@pytest.fixture
def trial(monkeypatch):
    def make(processes=1, beside=(0, 0), **options):
        task, section = Costly(), TrainSection(batch_size=2, epochs=2, **options)
        monkeypatch.setattr("ftengine.training.estimate.time.perf_counter", lambda: task.seconds)
        module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        cpu = torch.device("cpu")
        accelerator = SimpleNamespace(
            num_processes=processes, device=cpu, autocast=lambda: torch.autocast("cpu", enabled=False)
        )
        optimizer = registry_of().build("optimizer", {"name": "adamw"}, "train.optimizer")
        groups = [{"params": list(module.parameters()), "lr": 0.1, "weight_decay": 0.0}]
        steps = plan_steps(24, section, processes)
        loaded = SimpleNamespace(module=module)
        none = FastPaths([], loaded, training_context(), {})
        return Trial(accelerator, loaded, task, [], Split(), section, 0, steps, optimizer, groups, none, beside)

    return make


@pytest.mark.parametrize("processes", [1, 4])
def test_time_is_that_of_the_runs_own_batches_which_processes_share(trial, processes):
    found = estimate(trial(processes), evaluate_tokens=800.0)
    assert found.train_seconds == pytest.approx(24 * 0.4 / processes)  # steps of 0.2, 0.4 and 0.6 seconds
    assert found.evaluate_seconds == pytest.approx(800 * 0.01 / processes)
    assert found.weight_bytes == WEIGHTS
    assert found.optimizer_bytes == pytest.approx(3 * WEIGHTS, abs=64)
    assert found.peak_bytes >= found.weight_bytes + found.optimizer_bytes + found.activation_bytes + found.other_bytes


def test_memory_is_that_of_the_largest_batch_which_is_not_tried_where_it_would_not_fit(trial):
    tried, scaled = trial(), trial()
    for one, most in ((tried, 10**12), (scaled, 0)):
        with one.attached() as attached:
            held, peak = one.memory(attached, most)
        assert peak - held - one.state_bytes == pytest.approx(60 * MIB, abs=6 * MIB)  # of the heap, a few pages more
        assert not one.loaded.module[1].running_mean.any()
        assert all(p.grad is None for p in one.loaded.module.parameters())
        assert peak_memory_bytes() >= held + 40 * MIB
    assert sorted(tried.passes) == [20, 60]
    assert sorted(scaled.passes) == [20, 40]


def test_drawn_answers_count_where_they_take_more_than_a_batch(trial):
    """And what a task holds all the time counts always."""
    for beside, drawing in (((0, 0), 0), ((7 * MIB, 9 * MIB), 7), ((7 * MIB, 100 * MIB), 7 + 100 - 60)):
        found = estimate(trial(beside=beside), evaluate_tokens=0.0)
        assert found.drawing_bytes == pytest.approx(drawing * MIB, abs=6 * MIB)
        parts = found.activation_bytes + found.drawing_bytes + found.other_bytes
        assert found.peak_bytes >= found.weight_bytes + found.optimizer_bytes + parts


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"max": "max"}, None),
        ({"max": f"{4 * MIB}", "current": f"{3 * MIB}", "memory.stat": f"anon 1\ninactive_file {2 * MIB}\n"}, 3 * MIB),
        ({"max": "1"}, None),
    ],
)
def test_files_that_were_read_do_not_count_as_taken_in_a_container(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr("ftengine.training.memory.CGROUP", tmp_path)
    monkeypatch.setattr("ftengine.training.memory.held_bytes", lambda device: 0)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, content in files.items():
        (tmp_path / (name if "." in name else f"memory.{name}")).write_text(content)
    found = available_bytes(torch.device("cpu"))
    assert found == expected if expected else found > 100 * MIB
