"""A run that is killed at any file operation or moment, or that the disk fails, resumes as if nothing had happened.

`make test-slow` tries some of the cases, `make faults` (FTENGINE_FAULTS=all) all of them. Their runs share a process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
EVERYTHING = os.environ.get("FTENGINE_FAULTS") == "all"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return a function that puts cases, [kind, number], through a process of runs, and the operations of a run."""
    folder = tmp_path_factory.mktemp("faults")
    library, compiler = folder / "file_faults.so", os.environ.get("CXX", "g++")
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", str(HERE / "file_faults.cpp"), "-o", str(library)]
    try:
        subprocess.run([*command, "-ldl"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"{compiler} cannot compile: {error}")
    work = folder / "work"
    work.mkdir()
    line = [sys.executable, str(HERE / "faulty_runs.py"), str(work), str(library)]
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        operations = json.loads(process.stdout.readline())["operations"]

        def go_through(kind, numbers):
            found = []
            for number in numbers:
                print(json.dumps({"kind": kind, "at": number}), file=process.stdin, flush=True)
                found.append(json.loads(process.stdout.readline()))
            return found

        yield go_through, operations
        process.stdin.close()


def faults(outcomes, kind, numbers):
    found = outcomes(kind, numbers)
    assert len(found) == len(numbers)
    bad = [one for one in found if one["wrong"]]
    return [f"{one['kind']} {one['at']} ({one['operation']}): {'; '.join(one['wrong'])}" for one in bad]


def chosen(operations, few):
    """Return the numbers of all operations, or of a few, spread over them."""
    return range(1, len(operations) + 1, 1 if EVERYTHING else len(operations) // few)


def test_a_run_killed_at_a_file_operation_resumes(outcomes):
    go_through, operations = outcomes
    assert len(operations) > 150
    assert faults(go_through, "kill", chosen(operations, 3)) == []


def test_a_run_killed_at_random_moments_resumes(outcomes):
    assert faults(outcomes[0], "moment", range(60 if EVERYTHING else 1)) == []


def test_a_run_on_a_disk_too_small_for_it_resumes_on_a_larger_one(outcomes, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    subprocess.run(["umount", tmp_path], check=True)
    assert faults(outcomes[0], "disk", range(40 if EVERYTHING else 1)) == []


@pytest.mark.parametrize("error", ["ENOSPC", "EROFS", "EIO"])
def test_a_failing_disk_is_one_error_and_the_run_resumes(outcomes, error):
    """Disk full, remounted read-only, or broken, from an operation on."""
    go_through, operations = outcomes
    some = [i for i, operation in enumerate(operations, 1) if operation.endswith("step-000002")]
    assert faults(go_through, error, chosen(operations, 1) if EVERYTHING else some[:1]) == []
