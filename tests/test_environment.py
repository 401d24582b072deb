"""What a run records of its machine."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a program's own peak")
def test_peak_memory_is_this_programs_and_not_that_of_whoever_started_it():
    ballast = bytearray(600 << 20)  # what the child must not count
    program = "from ftengine.run.environment import peak_memory_bytes; print(peak_memory_bytes() >> 20)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert 0 < int(told) < len(ballast) >> 20
