"""Run the kernels' tests with kernels that AddressSanitizer and UndefinedBehaviorSanitizer watch.

A program: `python sanitized.py [pytest's options]`; it compiles them into a copy of the package below build/.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


FOLDER = ROOT / "build" / "sanitized"


def compile_kernels(compiler: list[str]) -> None:
    sys.path.insert(0, str(ROOT / "csrc"))
    from builder import parts

    parts.BUILD = Path("build") / "sanitized-kernels"
    # The sanitizers' checks between the instructions of -O3 take compilers several times as long.
    parts.HOST_OPTIONS = tuple(option.replace("-O3", "-O1") for option in parts.HOST_OPTIONS)
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(ROOT / "ftengine", FOLDER / "ftengine", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    chosen = {"FTENGINE_CPU": "1", "FTENGINE_CUDA": "0", "FTENGINE_EMULATED": "1"}
    parts.Plan({**os.environ, **chosen, "CXX": shlex.join([*compiler, *FLAGS])}).build(FOLDER)


def environment(compiler: list[str]) -> dict[str, str]:
    """Return the environment of a Python that loads sanitized libraries."""
    runtimes = [
        subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(map(str.strip, runtimes)),
        # Python frees little at exit, and a fake stack for each of the emulator's fibers takes gigabytes.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "FTENGINE_REQUIRE_EXTENSION": "1",
        "PYTHONPATH": f"{FOLDER}:{ROOT / 'plugins'}",
    }


def main() -> None:
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    compile_kernels(compiler)
    tests = [str(ROOT / "tests" / "ops"), "--ignore", str(ROOT / "tests" / "ops" / "cuda" / "test_sanitized.py")]
    options = ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), *sys.argv[1:]]
    command = [sys.executable, "-m", "pytest", "-q", *options, *tests]
    sys.exit(subprocess.run(command, cwd=FOLDER, env=environment(compiler), check=False).returncode)


if __name__ == "__main__":
    main()
