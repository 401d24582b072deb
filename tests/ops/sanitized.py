"""Compile the kernels with AddressSanitizer and UndefinedBehaviorSanitizer into a copy of the package.

A program: `python sanitized.py FOLDER` prints the environment under which tests in FOLDER use them.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


def main(folder: Path) -> None:
    sys.path.insert(0, str(ROOT / "csrc"))
    from builder import parts

    compiler = shlex.split(os.environ.get("CXX", "g++"))
    parts.BUILD = Path("build") / "sanitized-kernels"
    # The sanitizers' checks between the instructions of -O3 take compilers several times as long.
    parts.HOST_OPTIONS = tuple(option.replace("-O3", "-O1") for option in parts.HOST_OPTIONS)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "ftengine", folder / "ftengine", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    environ = {**os.environ, "CXX": shlex.join([*compiler, *FLAGS]), "FTENGINE_CUDA": "0", "FTENGINE_EMULATED": "1"}
    parts.Plan({**environ, "FTENGINE_CPU": "1"}).build(folder)
    runtimes = [
        subprocess.run(
            [*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python frees little at exit, and a fake stack for each of the emulator's fibers takes gigabytes.
    options = "ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1"
    print(f"LD_PRELOAD='{':'.join(runtimes)}' {options}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
