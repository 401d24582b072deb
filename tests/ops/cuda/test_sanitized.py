"""The emulated kernels under AddressSanitizer: no access outside an operand or the workspace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulator_build import build_emulator
from toolchain import Unavailable

pytestmark = pytest.mark.slow

OVERRUN = """
import importlib.util, os
import torch
spec = importlib.util.spec_from_file_location("_emulated_cuda", os.environ["EMULATED_CUDA"])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.sanitized
module.run_fault("none", 0)
print("sound", flush=True)
module.run_fault("global overrun", 0)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return the environment of a Python that runs a sanitized module; skip where no compiler can make one."""
    compiler = os.environ.get("CXX", "g++")
    try:
        command = [compiler, "-print-file-name=libasan.so"]
        runtime = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"{compiler} does not run: {error}")
    if not Path(runtime).is_absolute():
        pytest.skip(f"{compiler} has no libasan.so")
    try:
        module = build_emulator(
            tmp_path_factory.mktemp("sanitized") / "emulator",
            {**os.environ, "CXX": compiler},
            FLAGS="-O0;-fsanitize=address;-fno-omit-frame-pointer",
        )
    except Unavailable as error:
        pytest.skip(str(error))
    return {
        **os.environ,
        "LD_PRELOAD": runtime,
        # Python frees little at exit, and a fake stack for each of hundreds of fibers takes gigabytes.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "EMULATED_CUDA": str(module),
        "OMP_NUM_THREADS": "1",
    }


def test_an_access_outside_its_memory_is_found(environment):
    result = subprocess.run([sys.executable, "-c", OVERRUN], env=environment, capture_output=True, text=True)
    assert result.stdout == "sound\n"
    assert "heap-buffer-overflow" in result.stderr
    assert result.returncode != 0


def test_kernels_stay_within_their_memory(environment):
    """Some tests of test_emulated.py about sizes, ranks, strides and empty operands, in a process of their own."""
    tests = Path(__file__).with_name("test_emulated.py")
    chosen = "(composition and dtype0 and 0.3 and not shape4) or every_rank[17] or every_rank[100] or empty or strides"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(tests),
        "-k",
        chosen,
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "passed" in result.stdout
    assert "skipped" not in result.stdout
