"""Two processes with half the batch each do what one does with the whole, with the whole model each or a part of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cells import Cell
from comparisons import ROUNDINGS, roundings
from counted import counting
from planted import OF_PROCESSES
from processes import together
from traces import Trace, train

pytestmark = pytest.mark.slow

WHOLE = [
    Cell("full", "gpt2"), Cell("lora", "llama"), Cell("dora", "bert"), Cell("prompt", "t5"), Cell("prefix", "qwen3"),
    Cell("bitfit", "bart"), Cell("full", "resnet"), Cell("lora", "olmoe"),
]  # fmt: skip
DIVIDED = [Cell("full", "llama"), Cell("lora", "bert"), Cell("lora", "gpt-oss")]
PLANTED = Cell("lora", "llama")
SHARED = [(Cell("lora", "qwen3"), "ddp"), (Cell("full", "gpt2"), "fsdp"), (Cell("lora", "mistral"), "fsdp")]
SHARED_PREFIX, ROWS = {"train.fast_paths": "shared-prefix"}, {"train.fast_paths": "off"}


def child(folder: str) -> None:
    """Train each cell with half the batch, whole and divided, and one cell with each fault; keep what came of it."""
    jobs = [(cell, "ddp", None, {}) for cell in WHOLE] + [(cell, "fsdp", None, {}) for cell in DIVIDED]
    jobs += [(cell, parallel, None, SHARED_PREFIX) for cell, parallel in SHARED]
    for cell, parallel, fault, more in [*jobs, *((PLANTED, "ddp", fault, {}) for fault in OF_PROCESSES)]:
        name = f"{cell}-{fault or parallel}{'-shared' if more else ''}"
        recipe = cell.recipe(Path(folder), name, {"train.batch_size": 2, "train.parallel": parallel, **more})
        if fault is None:
            with counting() as taken:
                trace = train(recipe)
            trace.taken.update(taken)
        else:
            with OF_PROCESSES[fault]():
                trace = train(recipe)
        if trace.losses:  # the first process's
            torch.save({**vars(trace), "taken": dict(trace.taken)}, Path(folder, f"{name}.pt"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    for cell in dict.fromkeys([*WHOLE, *DIVIDED]):
        torch.save(vars(train(cell.recipe(folder, f"{cell}-one", {}))), folder / f"{cell}-one.pt")
    for cell, _ in SHARED:
        torch.save(vars(train(cell.recipe(folder, f"{cell}-rows", ROWS))), folder / f"{cell}-rows.pt")
    together(folder / "said", child, str(folder))
    return folder


def read(folder: Path, name: str) -> Trace:
    return Trace(**torch.load(folder / f"{name}.pt"))


@pytest.mark.parametrize(("cell", "parallel"), [*((c, "ddp") for c in WHOLE), *((c, "fsdp") for c in DIVIDED)], ids=str)
def test_two_processes_equal_one(folder, cell, parallel):
    one, two = read(folder, f"{cell}-one"), read(folder, f"{cell}-{parallel}")
    assert two.taken[parallel] == len(two.losses) > 0 == one.taken.get(parallel, 0)
    apart, where = roundings(one, two)
    assert apart <= ROUNDINGS, where


@pytest.mark.parametrize(("cell", "parallel"), SHARED, ids=str)
def test_two_processes_over_shared_prefixes_equal_one_over_rows(folder, cell, parallel):
    one, two = read(folder, f"{cell}-rows"), read(folder, f"{cell}-{parallel}-shared")
    assert two.taken["shared-prefix"] > 0 < two.taken[parallel]
    apart, where = roundings(one, two)
    assert apart <= ROUNDINGS, where


@pytest.mark.parametrize("fault", OF_PROCESSES)
def test_a_planted_fault_is_detected(folder, fault):
    assert roundings(read(folder, f"{PLANTED}-one"), read(folder, f"{PLANTED}-{fault}"))[0] > 2 * ROUNDINGS
