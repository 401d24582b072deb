"""The tools that a build needs: a C++ compiler, CMake and ninja, torch's headers, nvcc."""

import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

AT_LEAST_TORCH = (2, 10)
"""The stable ABI that is compiled against, TORCH_TARGET in CMakeLists.txt: one build serves every torch from here."""

AT_LEAST = {"cmake": (3, 22), "ninja": (1, 8)}


class Unavailable(Exception):
    """A tool is missing or does not work; the message says which and why."""


def find_program(name: str) -> str:
    """Return cmake or ninja: of PATH, else of the Python package of that name, which need not be in PATH.

    In this order, so that pip's isolated builds and others find the same one: another version begins anew. An old
    package's program in PATH is a script that fails where a build is isolated.

    Raises:
        Unavailable: there is none that works and is new enough.
    """
    for folders in (None, sysconfig.get_path("scripts")):
        if program := shutil.which(name, path=folders):
            done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
            if version_of(done.stdout) >= AT_LEAST[name] and done.returncode == 0:
                return program
    least = ".".join(map(str, AT_LEAST[name]))
    raise Unavailable(f"no {name} {least} or newer in PATH or beside {sys.executable}; pip install {name}")


def version_of(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, () where there is none."""
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


@cache
def _find_compiler(named: str) -> tuple[str, ...]:
    command = shlex.split(named) or next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if command is None:
        raise Unavailable("no C++ compiler: neither CXX nor c++, g++ or clang++ in PATH")
    program = "#include <vector>\ntemplate <class... T> auto sum(T... t) { return (t + ...); }\nint i = sum(1);\n"
    problem = _compiles([*command, "-std=c++17", "-shared", "-fPIC"], program, "probe.cpp")
    if problem is not None:
        raise Unavailable(f"{f'CXX={named}' if named else command[0]} does not compile C++17: {problem}")
    return tuple(command)


def find_compiler(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the compiler named by CXX, else the first of c++, g++ and clang++ in PATH.

    Raises:
        Unavailable: there is none, or it cannot make a shared library of C++17.
    """
    if sys.platform != "linux":
        raise Unavailable(f"kernels are built on Linux only, this is {sys.platform}")
    return _find_compiler(environ.get("CXX", ""))


def find_nvcc(environ: Mapping[str, str]) -> tuple[list[str], str]:
    """Return nvcc from CUDACXX, CUDA_HOME, CUDA_PATH or PATH, and the compiler of its host code.

    Raises:
        Unavailable: there is none, or it cannot work with the compiler.
    """
    homes = [Path(environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    found = next(filter(None, (shutil.which("nvcc", path=folder) for folder in (*homes, None))), None)
    command = shlex.split(environ.get("CUDACXX", "")) or [found]
    if command == [None]:
        raise Unavailable("no nvcc: neither CUDACXX nor CUDA_HOME, CUDA_PATH or PATH has one")
    host, *rest = find_compiler(environ)
    if rest and Path(host).name in ("ccache", "sccache", "distcc"):  # nvcc takes one program
        host = rest[0]
    program = "__global__ void kernel() {}\n"
    problem = _compiles([*command, "-ccbin", host, "-std=c++17", "-c"], program, "probe.cu")
    if problem is not None:
        raise Unavailable(f"{command[0]} does not work with {host}: {problem}")
    return command, host


def find_torch() -> tuple[Path, str]:
    """Return folder and version of the torch whose headers can be compiled against; only its files are read.

    Where pip isolates a build, sys.path holds the build requirements alone, but Python is still that of the
    environment which pip installs into, and torch is found there.

    Raises:
        Unavailable: none is there, or only older ones.
    """
    seen = []
    for folder, version in _installed_torches():
        if version_of(version) >= AT_LEAST_TORCH:
            return folder, version
        seen.append(version)
    found = f"only torch {', '.join(seen)}" if seen else "no torch"
    raise Unavailable(f"{found} to compile against; torch {'.'.join(map(str, AT_LEAST_TORCH))} or newer is needed")


def _installed_torches() -> Iterator[tuple[Path, str]]:
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    for place in dict.fromkeys([*sys.path, *site.getsitepackages(), *users]):
        folder = Path(place).absolute() / "torch"
        if (folder / "include" / "torch" / "csrc").is_dir() and (folder / "version.py").is_file():
            version = re.search(r"__version__ = '(.+?)'", (folder / "version.py").read_text("utf-8"))
            if version:
                yield folder, version[1]


def _compiles(command: list[str], program: str, name: str) -> str | None:
    """Return None if the command compiles the program, else what it complains of, in a line."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / name
        source.write_text(program)
        try:
            subprocess.run(
                [*command, source, "-o", Path(folder) / "out"], check=True, text=True, capture_output=True, cwd=folder
            )
        except OSError as error:
            return error.strerror
        except subprocess.CalledProcessError as error:
            told = [line for line in (error.stderr + error.stdout).splitlines() if line.strip()]
            return next((line for line in told if "error" in line), told[0] if told else f"status {error.returncode}")
    return None


def known_architectures(nvcc: list[str]) -> list[str]:
    """Return those that nvcc compiles for, such as "90"."""
    told = subprocess.run([*nvcc, "--list-gpu-arch"], check=True, text=True, capture_output=True).stdout
    return re.findall(r"compute_(\d+)", told)
