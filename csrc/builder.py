"""Decides what is compiled, from the tools that are there, and has CMake compile it as ../CMakeLists.txt says.

FTENGINE_CPU and FTENGINE_CUDA choose: auto builds what the tools allow, 1 fails where they do not, 0 leaves out.
Hardware decides nothing, since the machine that builds need not be the one that runs. ftengine/build.json records what
was built and what was not, and why.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from toolchain import (
    AT_LEAST_TORCH,
    Unavailable,
    find_compiler,
    find_nvcc,
    find_program,
    find_torch,
    known_architectures,
)

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "kernels" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"

ARCHITECTURES = ("80", "90", "100", "120")
"""Of A100, H100, B200 and RTX 50; the first one's PTX serves the others."""

SETTINGS = {"cpu": "FTENGINE_CPU", "cuda": "FTENGINE_CUDA"}
CALLED = {"cpu": "CPU kernels", "cuda": "CUDA kernels"}
FILES = {
    "cpu": "ftengine/ops/_ops_cpu.so",
    "cuda": "ftengine/ops/_ops_cuda.so",
    "_native": f"ftengine/_native{sysconfig.get_config_var('EXT_SUFFIX')}",
}
RECORD = "ftengine/build.json"


class BuildError(SystemExit):
    """The build stops, with a message for whoever started it."""

    def __init__(self, message: str) -> None:
        super().__init__(f"error: {message}")


class Plan:
    """What this machine's tools allow: parts to build, each with what CMake is told, and why others are left out."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.parts: dict[str, dict[str, str]] = {}
        self.left_out: dict[str, str] = {}
        self.torch: str | None = None
        for name, find in (("cpu", self._for_any), ("cuda", self._for_cuda)):
            wanted = setting(name, environ)
            try:
                if wanted == "0":
                    raise Unavailable(f"{SETTINGS[name]}=0")
                self.parts[name] = find()
            except Unavailable as error:
                if wanted == "1":
                    raise BuildError(f"{SETTINGS[name]}=1, but {error}") from error
                self.left_out[name] = str(error)

    def build(self, target: Path, folder: Path = BUILD, **definitions: str) -> list[str]:
        """Build the parts, put them under `target`, remove others from there, and return the files that are new."""
        built: dict[str, Any] = {"files": []}
        if self.parts:
            for name in SETTINGS:
                definitions |= {SETTINGS[name]: "ON" if name in self.parts else "OFF", **self.parts.get(name, {})}
            definitions["Python_EXECUTABLE"] = sys.executable
            run_cmake(ROOT, folder, self.environ, definitions)
            built = json.loads((folder / "built.json").read_text("utf-8"))
        record = self.record(built)
        for name, file in FILES.items():
            if name in built["files"]:
                _replace(folder / file, target / file)
            else:
                (target / file).unlink(missing_ok=True)
        (target / RECORD).parent.mkdir(parents=True, exist_ok=True)
        (target / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(record["line"], file=sys.stderr)
        return [RECORD, *(FILES[name] for name in built["files"])]

    def record(self, built: Mapping[str, Any]) -> dict[str, Any]:
        """Return how the build was made, of what CMake says of it, with a `line` that has what matters."""
        summaries, left_out = [], dict(self.left_out)
        compiler, cpu, cuda = (built.get(name) for name in ("compiler", "cpu", "cuda"))
        if cpu:
            left_out |= {f"{name} kernels": f"{compiler} does not know them" for name in cpu.pop("unknown")}
            summaries.append(f"CPU kernels ({', '.join(cpu['instruction_sets'])}; {compiler})")
        if cuda:
            *real, oldest = re.findall(r"\d+[af]?", self.parts["cuda"]["CMAKE_CUDA_ARCHITECTURES"])
            cuda |= {"architectures": [f"sm_{name}" for name in real], "ptx": f"compute_{oldest}"}
            summaries.append(f"CUDA kernels ({', '.join(cuda['architectures'])} + PTX; nvcc {cuda['nvcc']})")
        if self.parts and "_native" not in built["files"]:
            left_out["_native"] = "Python.h is missing; on Debian and Ubuntu: apt install python3-dev"
        by_reason: dict[str, list[str]] = {}
        for name, reason in left_out.items():
            by_reason.setdefault(reason, []).append(CALLED.get(name, name))
        line = f"ftengine: built {', '.join(summaries) or 'no kernels'}"
        if by_reason:
            line += "; left out " + "; ".join(f"{' and '.join(names)} ({why})" for why, names in by_reason.items())
        return {
            "line": line,
            "compiler": compiler,
            "torch": self.torch,
            "at_least_torch": ".".join(map(str, AT_LEAST_TORCH)),
            "python": platform.python_version(),
            "cpu": cpu,
            "cuda": cuda,
            "left_out": left_out,
        }

    def _for_any(self) -> dict[str, str]:
        find_compiler(self.environ)
        folder, self.torch = find_torch()
        for program in ("cmake", "ninja"):
            find_program(program)
        return {"TORCH": str(folder)}

    def _for_cuda(self) -> dict[str, str]:
        common = self._for_any()
        nvcc, host = find_nvcc(self.environ)
        known = known_architectures(nvcc)
        named = [name for name in re.split(r"[,; ]+", self.environ.get("FTENGINE_CUDA_ARCHS", "")) if name]
        unknown = [name for name in named or ARCHITECTURES if re.sub(r"[af]$", "", name) not in known]
        if named and unknown:
            raise BuildError(
                f"FTENGINE_CUDA_ARCHS={','.join(named)}: {nvcc[0]} does not know {', '.join(unknown)}. "
                f"It knows {', '.join(known)}"
            )
        if set(unknown) == set(ARCHITECTURES):
            raise Unavailable(f"{nvcc[0]} knows none of {', '.join(ARCHITECTURES)}")
        self.left_out |= {f"sm_{name}": f"{nvcc[0]} does not know it" for name in unknown}
        chosen = named or [name for name in ARCHITECTURES if name in known]
        # PTX of the oldest runs on every architecture that has no code of its own, and kernels use nothing newer.
        oldest = min(int(re.sub(r"\D", "", name)) for name in chosen)
        return {
            **common,
            "CMAKE_CUDA_COMPILER": nvcc[0],
            "CMAKE_CUDA_FLAGS": shlex.join(nvcc[1:]),
            "CMAKE_CUDA_HOST_COMPILER": host,
            "CMAKE_CUDA_ARCHITECTURES": ";".join([*(f"{name}-real" for name in chosen), f"{oldest}-virtual"]),
        }


def setting(part: str, environ: Mapping[str, str]) -> str:
    name = SETTINGS[part]
    value = environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise BuildError(
            f"{name}={value}: it may be auto (build what the toolchain allows), 1 (build, or fail) or 0 (leave out)"
        )
    return value


@cache
def plan() -> Plan:
    """Return this environment's plan; compilers are tried out once a process."""
    return Plan(os.environ)


def run_cmake(source: Path, folder: Path, environ: Mapping[str, str], definitions: Mapping[str, str]) -> None:
    """Build what source/CMakeLists.txt says in `folder`: what changed, or all where tools or definitions are others.

    Raises:
        BuildError: it failed; what the tools printed went to stdout and stderr.
    """
    jobs = environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    if not jobs.isdecimal() or int(jobs) == 0:
        raise BuildError(f"MAX_JOBS={jobs}: it must be a number of compilers that may run at once, such as 2")
    environ = {**environ, "CXX": shlex.join(find_compiler(environ))}
    configure = [find_program("cmake"), "--log-level=WARNING", "-S", str(source), "-B", str(folder), "-G", "Ninja"]
    definitions = {"CMAKE_MAKE_PROGRAM": find_program("ninja"), **definitions}
    configure += [f"-D{name}={value}" for name, value in definitions.items()]
    before, now = folder / "configured.json", json.dumps([environ["CXX"], *configure])
    try:
        if not before.is_file() or before.read_text("utf-8") != now:
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run(configure, env=environ, check=True)
            before.write_text(now, encoding="utf-8")
        subprocess.run([configure[0], "--build", str(folder), "-j", jobs], env=environ, check=True)
    except subprocess.CalledProcessError as error:
        raise BuildError(
            "compiling ftengine's kernels failed; the reason stands above (pip shows it with -v). "
            "FTENGINE_CPU=0 FTENGINE_CUDA=0 installs without them"
        ) from error


def _replace(source: Path, target: Path) -> None:
    """Copy a file into place at once: a process that runs the old one keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f"{target.name}.new")
    shutil.copy2(source, fresh)
    os.replace(fresh, target)
