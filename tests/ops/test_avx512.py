"""The kernels for AVX-512, with and without its bf16 instructions, where no processor has them: emulated.

`rebuilt.py` compiles them with avx512/immintrin.h into a copy of the package; the kernels' own tests run with that.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from rebuilt import is_gcc

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from rebuilt import OPS, rebuild, run_tests
folder = rebuild("emulated-avx512", {})
tests = [str(path) for path in sorted(OPS.glob("test_*.py")) if path.name != "test_avx512.py"]
sys.exit(run_tests(folder, "-k", "avx512", *tests))
"""


def _has_avx2() -> bool:
    try:
        return platform.machine() == "x86_64" and " avx2 " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not _has_avx2(), reason="emulated with AVX2, on Linux")
def test_kernels_for_avx512_pass_their_tests():
    if not is_gcc(os.environ.get("CXX", "c++")):  # asked here, so that looking for tests starts no compiler
        pytest.skip("emulated by GCC")
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = done.stdout.strip().splitlines()[-1]
    assert "skipped" not in last
    assert int(last.split(" passed")[0].split()[-1]) > 500
