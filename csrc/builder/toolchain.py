"""The tools and headers that a build needs: a C++ compiler, nvcc, torch, Python's headers.

Whether a tool is there and works decides what is built; what hardware is there does not, since the machine that
builds need not be the one that runs.
"""

import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


class Unavailable(Exception):
    """A tool is missing or does not work; the message says which and why."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that makes shared libraries.

    Args:
        command: how it is called.
        version: the first line of what it says of itself.
    """

    command: tuple[str, ...]
    version: str

    def accepts(self, *flags: str) -> bool:
        return _compiles([*self.command, *flags], "int main() {}\n", "probe.cpp") is None


@dataclass(frozen=True)
class Nvcc:
    """NVIDIA's compiler, with the architectures that it knows ("80", "90", …)."""

    command: tuple[str, ...]
    version: str
    architectures: tuple[str, ...]


@dataclass(frozen=True)
class Torch:
    """An installed torch, of which only files are read."""

    folder: Path
    version: str

    @property
    def include(self) -> Path:
        return self.folder / "include"

    @property
    def lib(self) -> Path:
        return self.folder / "lib"


def find_compiler(environ: Mapping[str, str]) -> Compiler:
    """Return the compiler named by CXX, else the first of c++, g++ and clang++ in PATH.

    Raises:
        Unavailable: there is none, or it cannot make a shared library of C++17.
    """
    named = shlex.split(environ.get("CXX", ""))
    command = named or next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if command is None:
        raise Unavailable("no C++ compiler: neither CXX nor c++, g++ or clang++ in PATH")
    called = f"CXX={environ['CXX']}" if named else command[0]
    program = "#include <vector>\ntemplate <class... T> auto sum(T... t) { return (t + ...); }\nint i = sum(1);\n"
    problem = _compiles([*command, "-std=c++17", "-shared", "-fPIC"], program, "probe.cpp")
    if problem is not None:
        raise Unavailable(f"{called} does not compile C++17: {problem}")
    return Compiler(tuple(command), _run([*command, "--version"]).partition("\n")[0].strip())


def find_nvcc(environ: Mapping[str, str], compiler: Compiler) -> Nvcc:
    """Return nvcc from CUDACXX, CUDA_HOME, CUDA_PATH or PATH, with `compiler` for its host code.

    Raises:
        Unavailable: there is none, or it cannot work with the compiler.
    """
    named = shlex.split(environ.get("CUDACXX", ""))
    homes = [Path(environ[name]) / "bin" / "nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    found = next((str(path) for path in homes if path.is_file()), None) or shutil.which("nvcc")
    if not named and found is None:
        raise Unavailable("no nvcc: neither CUDACXX nor CUDA_HOME, CUDA_PATH or PATH has one")
    host, *rest = compiler.command
    if rest and Path(host).name in ("ccache", "sccache", "distcc"):  # nvcc takes one program
        host = rest[0]
    command = [*(named or [found]), "-ccbin", host]
    problem = _compiles([*command, "-std=c++17", "-c"], "__global__ void kernel() {}\n", "probe.cu")
    if problem is not None:
        raise Unavailable(f"{command[0]} does not work with {compiler.version}: {problem}")
    version = re.search(r"release ([\d.]+)", _run([*command[:-2], "--version"]))
    known = re.findall(r"compute_(\d+)", _run([*command[:-2], "--list-gpu-arch"]))
    return Nvcc(tuple(command), version[1] if version else "of unknown version", tuple(known))


def find_torch(at_least: tuple[int, int]) -> Torch:
    """Return the torch whose headers can be compiled against.

    Where pip isolates a build, sys.path holds the build requirements alone, but Python is still that of the
    environment which pip installs into, and torch is found there.

    Raises:
        Unavailable: none is there, or only older ones.
    """
    seen = []
    for torch in _installed_torches():
        if tuple(map(int, re.findall(r"\d+", torch.version)[:2])) >= at_least:
            return torch
        seen.append(torch.version)
    found = f"only torch {', '.join(seen)}" if seen else "no torch"
    raise Unavailable(f"{found} to compile against; torch {'.'.join(map(str, at_least))} or newer is needed")


def find_python_headers() -> Path:
    """Return the folder of Python.h.

    Raises:
        Unavailable: it is not installed.
    """
    folder = Path(sysconfig.get_path("include"))
    if not (folder / "Python.h").is_file():
        raise Unavailable("Python.h is missing; on Debian and Ubuntu: apt install python3-dev")
    return folder


def _installed_torches() -> Iterator[Torch]:
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    for place in dict.fromkeys([*sys.path, *site.getsitepackages(), *users]):
        folder = Path(place).absolute() / "torch"
        if (folder / "include" / "torch" / "csrc").is_dir() and (folder / "version.py").is_file():
            version = re.search(r"__version__ = '(.+?)'", (folder / "version.py").read_text("utf-8"))
            if version:
                yield Torch(folder, version[1])


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


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout
