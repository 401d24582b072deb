"""What training on a CPU asks of the libraries below it."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_memory_that_a_step_frees_serves_the_next_one():
    """In a process of its own: how malloc is set stays, and a heap that others have cut up serves less."""
    steps = """
import resource
import torch
from ftengine.training.cpu import prepare_cpu

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(1 << 21) for _ in range(8)]  # 8 MiB each: 16,384 pages in all
    del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

step()
print(step())
prepare_cpu()
step()
print(min(step() for _ in range(3)))
"""
    out = subprocess.run([sys.executable, "-c", steps], capture_output=True, text=True, check=True).stdout
    without, kept = map(int, out.split())
    assert without > 10_000
    assert kept < 1000


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_of_ever_new_sizes_take_no_more_memory(dtype):
    """oneDNN's machine code of each size of a product: of 1,024 sizes without a limit, of 128 with it."""
    steps = f"""
import torch
from ftengine import Recipe
from ftengine.ops.library import use_onednn
from ftengine.ops.products import products_by_onednn
from ftengine.parallel.device import Device

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

recipe = {{"model": {{"source": "m"}}, "task": "causal-lm", "data": {{"train": "t"}}, "output": "o"}}
Device.open(Recipe.make({{**recipe, "strategy": "lora"}}))
x, weights = torch.randn(400, 256, dtype=torch.{dtype}), torch.randn(256, 256, dtype=torch.{dtype})
with use_onednn(1), products_by_onednn():
    for rows in range(200, 400):
        for columns in (64, 128, 192, 256):
            x[:rows, :columns] @ weights[:columns]
        if rows in (260, 399):
            print(resident())
"""
    out = subprocess.run([sys.executable, "-c", steps], capture_output=True, text=True, check=True).stdout
    after_240, after_800 = map(float, out.split())
    assert after_800 - after_240 < 60
