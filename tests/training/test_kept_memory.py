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
