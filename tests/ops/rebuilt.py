"""Kernels compiled otherwise than a build does it, in a copy of the package below build/, and tests run with them."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "csrc"))

from builder import ROOT, Plan

OPS = ROOT / "tests" / "ops"

EMULATED_AVX512 = ("-mavx2", "-mfma", f"-I{OPS / 'avx512'}", "-Wno-psabi", "-Wno-ignored-attributes")
"""What compiles the kernels for AVX-512 with avx512/immintrin.h, for any processor that has AVX2."""


def is_gcc(compiler: str) -> bool:
    """Say whether a compiler is there and has GCC's headers, which avx512/immintrin.h stands on."""
    try:
        command = [*shlex.split(compiler), "--version"]
        return "clang" not in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False


def rebuild(name: str, environ: Mapping[str, str], **definitions: str) -> Path:
    """Compile with AVX-512 emulated (by GCC) and what `environ` chooses; return where the copy of the package lies."""
    folder = ROOT / "build" / name
    if is_gcc(environ.get("CXX", os.environ.get("CXX", "c++"))):
        definitions |= dict.fromkeys(("AVX512", "AVX512BF16"), ";".join(EMULATED_AVX512))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "ftengine", folder / "ftengine", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    plan = Plan({**os.environ, "FTENGINE_CPU": "1", "FTENGINE_CUDA": "0", **environ})
    plan.build(folder, ROOT / "build" / f"{name}-kernels", **definitions)
    return folder


def run_tests(folder: Path, *options: str, environ: Mapping[str, str] | None = None) -> int:
    """Run pytest with the package in `folder`; return its exit status."""
    paths = {"PYTHONPATH": f"{folder}:{ROOT / 'plugins'}", "FTENGINE_REQUIRE_EXTENSION": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), *options]
    return subprocess.run(command, cwd=folder, env={**os.environ, **paths, **(environ or {})}, check=False).returncode
