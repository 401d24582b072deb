"""Run the kernels' tests with kernels that AddressSanitizer and UndefinedBehaviorSanitizer watch.

A program: `python sanitized.py [pytest's options]`. GCC's kernels for AVX-512 are emulated, whatever the processor: no
sanitizer sees which lanes a masked instruction touches.
"""

import os
import shlex
import subprocess
import sys

from rebuilt import OPS, ROOT, rebuild, run_tests

sys.path.insert(0, str(OPS / "cuda"))

from emulator_build import build_emulator

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


def sanitizers(compiler: list[str]) -> dict[str, str]:
    """Return what the environment of a Python that loads sanitized libraries needs."""
    runtimes = [
        subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        "LD_PRELOAD": ":".join(map(str.strip, runtimes)),
        # Python frees little at exit, and a fake stack for each of the emulator's fibers takes gigabytes.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def main() -> None:
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    # The sanitizers' checks between the instructions of -O3 take compilers several times as long.
    folder = rebuild("sanitized", {"CXX": shlex.join([*compiler, *FLAGS])}, OPTIMIZE="-O1")
    environ = {**os.environ, "CXX": shlex.join(compiler)}
    emulator = build_emulator(ROOT / "build" / "sanitized-emulator", environ, FLAGS=";".join(("-O1", *FLAGS)))
    tests = [str(OPS), "--ignore", str(OPS / "cuda" / "test_sanitized.py"), "--ignore", str(OPS / "test_avx512.py")]
    sys.exit(run_tests(folder, *sys.argv[1:], *tests, environ={**sanitizers(compiler), "EMULATED_CUDA": str(emulator)}))


if __name__ == "__main__":
    main()
