"""What is compiled of ftengine, with which flags, and what is left out and why.

    cpu       ftengine/ops/_ops_cpu.so       kernels for CPUs, one source per instruction set
    cuda      ftengine/ops/_ops_cuda.so      kernels for NVIDIA GPUs
    native    ftengine/_native*.so           says how the build was made; linked to no torch
    emulated  ftengine/ops/_emulated_cuda*.so   the CUDA kernels run by the host, for tests

FTENGINE_CPU, FTENGINE_CUDA and FTENGINE_EMULATED choose: auto builds what the toolchain allows, 1 fails where it does
not, 0 leaves out.
"""

import json
import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from builder.steps import BuildError, Step, run_steps
from builder.toolchain import Compiler, Torch, Unavailable, find_compiler, find_nvcc, find_python_headers, find_torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path("build") / "kernels" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"

AT_LEAST_TORCH = (2, 10)
"""The stable ABI that is compiled against: one build serves every torch from this one on."""

SETTINGS = {"cpu": "FTENGINE_CPU", "cuda": "FTENGINE_CUDA", "emulated": "FTENGINE_EMULATED"}
DEFAULTS = {"cpu": "auto", "cuda": "auto", "emulated": "0"}
CALLED = {"cpu": "CPU kernels", "cuda": "CUDA kernels", "native": "_native", "emulated": "emulated CUDA kernels"}

FILES = {
    "cpu": "ftengine/ops/_ops_cpu.so",
    "cuda": "ftengine/ops/_ops_cuda.so",
    "native": f"ftengine/_native{sysconfig.get_config_var('EXT_SUFFIX')}",
    "emulated": f"ftengine/ops/_emulated_cuda{sysconfig.get_config_var('EXT_SUFFIX')}",
}
RECORD = "ftengine/build.json"
"""Why nothing was compiled, where there is no _native to say so."""

AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512cd", "-mfma")
INSTRUCTION_SETS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": AVX512,
    "avx512bf16": (*AVX512, "-mavx512bf16"),
}
"""Source in csrc/cpu and the flags that it alone is compiled with."""

HOST_OPTIONS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden")
NVCC_OPTIONS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", "--threads=2")
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*AT_LEAST_TORCH)

ARCHITECTURES = ("80", "90", "100", "120")
"""Of A100, H100, B200 and RTX 50; the first one's PTX serves the others."""


@dataclass(frozen=True)
class Part:
    """A file to build, the steps that build it, and what is recorded of them."""

    file: str
    steps: list[Step]
    facts: dict[str, Any] = field(default_factory=dict)


def wants_compiler(environ: Mapping[str, str]) -> bool:
    """Say whether anything is to be compiled, tools permitting."""
    return any(setting(part, environ) != "0" for part in SETTINGS)


def setting(part: str, environ: Mapping[str, str]) -> str:
    name = SETTINGS[part]
    value = environ.get(name, DEFAULTS[part])
    if value not in ("auto", "0", "1"):
        raise BuildError(
            f"{name}={value}: it may be auto (build what the toolchain allows), 1 (build, or fail) or 0 (leave out)"
        )
    return value


class Plan:
    """What this machine's tools allow: parts to build, and the others with the reason."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.parts: dict[str, Part] = {}
        self.left_out: dict[str, str] = {}
        for name, make in (("cpu", self._cpu), ("cuda", self._cuda), ("emulated", self._emulated)):
            self._add(name, setting(name, environ), make)
        if self.parts:
            self._add("native", "auto", self._native)

    def build(self, target: Path) -> list[str]:
        """Build the parts, put them under `target`, remove others from there, and return the files that are new."""
        made = {}
        if self.parts:
            header = f'constexpr char kRecord[] = R"json({json.dumps(self.record)})json";\n'
            _write_if_changed(ROOT / BUILD / "record.h", header)
            run_steps([step for part in self.parts.values() for step in part.steps], ROOT, BUILD)
            made = {part.file: ROOT / BUILD / part.file for part in self.parts.values()}
        if "native" not in self.parts:
            _write_if_changed(ROOT / BUILD / "build.json", json.dumps(self.record, indent=1) + "\n")
            made[RECORD] = ROOT / BUILD / "build.json"
        for file in (*FILES.values(), RECORD):
            if file in made:
                _replace(made[file], target / file)
            elif file != FILES["emulated"] or setting("emulated", self.environ) != "0":
                (target / file).unlink(missing_ok=True)  # but not what tests need and only make asks for
        print(self.line, file=sys.stderr)
        return list(made)

    @property
    def line(self) -> str:
        """What was built and what was not, and why, in one line."""
        built = [f"{CALLED[name]} ({part.facts['summary']})" for name, part in self.parts.items() if part.facts]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(CALLED.get(name, name))
        left_out = "; ".join(f"{' and '.join(names)} ({reason})" for reason, names in reasons.items())
        return f"ftengine: built {', '.join(built) or 'no kernels'}" + (f"; left out {left_out}" if left_out else "")

    @property
    def record(self) -> dict[str, Any]:
        """How the build was made, as it is remembered."""
        return {
            "line": self.line,
            "compiler": self._compiler.version if self.parts else None,
            "torch": self._torch.version if self.parts else None,
            "at_least_torch": ".".join(map(str, AT_LEAST_TORCH)),
            "python": platform.python_version(),
            **{name: self.parts[name].facts["record"] if name in self.parts else None for name in ("cpu", "cuda")},
            "left_out": self.left_out,
        }

    def _add(self, name: str, wanted: str, make: Callable[[], Part]) -> None:
        if wanted == "0":
            if DEFAULTS[name] != "0":
                self.left_out[name] = f"{SETTINGS[name]}=0"
            return
        try:
            self.parts[name] = make()
        except Unavailable as error:
            if wanted == "1":
                raise BuildError(f"{SETTINGS[name]}=1, but {error}") from error
            self.left_out[name] = str(error)

    # The tools, each looked for once.

    @cached_property
    def _compiler(self) -> Compiler:
        if sys.platform != "linux":
            raise Unavailable(f"kernels are built on Linux only, this is {sys.platform}")
        return find_compiler(self.environ)

    @cached_property
    def _torch(self) -> Torch:
        return find_torch(AT_LEAST_TORCH)

    # The parts.

    def _cpu(self) -> Part:
        compiler, options = self._compiler, (*HOST_OPTIONS, TORCH_TARGET)
        usable = {}
        for name, extra in INSTRUCTION_SETS.items():
            if extra and platform.machine() not in ("x86_64", "AMD64"):
                continue
            if compiler.accepts(*extra):
                usable[name] = extra
            else:
                self.left_out[f"{name} kernels"] = f"{compiler.version} does not know {' '.join(extra)}"
        command = (*compiler.command, *options, *_have(usable), *_includes(self._torch))
        steps = [
            _compile((*command, *usable.get(source.stem, ())), source)
            for source in _sources("csrc/cpu", "*.cpp")
            if source.stem in usable or source.stem not in INSTRUCTION_SETS
        ]
        steps.append(_link((*compiler.command, "-shared"), "cpu", steps, self._torch))
        return Part(
            FILES["cpu"],
            steps,
            {
                "summary": f"{', '.join(usable)}; {compiler.version}",
                "record": {"instruction_sets": list(usable), "flags": list(options)},
            },
        )

    def _cuda(self) -> Part:
        compiler, torch = self._compiler, self._torch
        nvcc = find_nvcc(self.environ, compiler)
        architectures = self._architectures(nvcc.architectures, nvcc.version)
        # PTX of the oldest runs on every architecture that has no code of its own, and kernels use nothing newer.
        oldest = min(int(re.sub(r"\D", "", name)) for name in architectures)
        targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
        targets.append(f"-gencode=arch=compute_{oldest},code=compute_{oldest}")
        options = (*NVCC_OPTIONS, TORCH_TARGET)
        flags = (*options, *_includes(torch), *targets)
        guard = (sys.executable, str(Path("csrc") / "builder" / "spills.py"))
        steps = [_compile((*guard, *nvcc.command, *flags), source) for source in _sources("csrc/cuda", "*.cu")]
        steps.append(_link((*nvcc.command, "-shared", "-cudart=static"), "cuda", steps, torch, "-Xlinker="))
        return Part(
            FILES["cuda"],
            steps,
            {
                "summary": f"{', '.join(f'sm_{name}' for name in architectures)} + PTX; nvcc {nvcc.version}",
                "record": {
                    "nvcc": nvcc.version,
                    "architectures": [f"sm_{name}" for name in architectures],
                    "ptx": f"compute_{oldest}",
                    "flags": list(options),
                },
            },
        )

    def _architectures(self, known: tuple[str, ...], version: str) -> list[str]:
        named = [name for name in re.split(r"[,; ]+", self.environ.get("FTENGINE_CUDA_ARCHS", "")) if name]
        unknown = [name for name in named or ARCHITECTURES if re.sub(r"[af]$", "", name) not in known]
        if named and unknown:
            raise BuildError(
                f"FTENGINE_CUDA_ARCHS={','.join(named)}: nvcc {version} does not know {', '.join(unknown)}. "
                f"It knows {', '.join(known)}"
            )
        if unknown:
            self.left_out[", ".join(f"sm_{name}" for name in unknown)] = (
                f"nvcc {version} does not know {'it' if len(unknown) == 1 else 'them'}"
            )
        if set(unknown) == set(ARCHITECTURES):
            raise Unavailable(f"nvcc {version} knows none of {', '.join(ARCHITECTURES)}")
        return named or [name for name in ARCHITECTURES if name in known]

    def _native(self) -> Part:
        cpu = self.parts.get("cpu")
        have = _have(cpu.facts["record"]["instruction_sets"]) if cpu else ()
        return self._module("native", [Path("csrc") / "native.cpp"], ("-O2", *have))

    def _emulated(self) -> Part:
        return self._module("emulated", _sources("csrc/cuda/emulated", "*.cpp"), ("-O2", TORCH_TARGET), self._torch)

    def _module(self, name: str, sources: list[Path], flags: tuple[str, ...], linked: Torch | None = None) -> Part:
        """Return a pybind11 module, with the headers that torch brings, linked to no torch unless one is given."""
        headers = (f"-I{BUILD}", "-isystem", str(find_python_headers()), "-isystem", str(self._torch.include))
        command = (*self._compiler.command, "-std=c++17", *flags, "-fPIC", "-fvisibility=hidden", "-Icsrc", *headers)
        steps = [_compile(command, source) for source in sources]
        steps.append(_link((*self._compiler.command, "-shared"), name, steps, linked))
        return Part(FILES[name], steps)


@cache
def plan() -> Plan:
    """Return this environment's plan; compilers are tried out once a process."""
    return Plan(os.environ)


def sources() -> list[str]:
    """Return what an archive of the sources must hold for building."""
    return [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "csrc").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]


def _sources(folder: str, pattern: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).glob(pattern))


def _includes(torch: Torch) -> tuple[str, ...]:
    return ("-Icsrc", "-isystem", str(torch.include))


def _have(instruction_sets: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"-DFTENGINE_HAVE_{name.upper()}" for name in instruction_sets if INSTRUCTION_SETS[name])


def _compile(command: tuple[str, ...], source: Path) -> Step:
    output = BUILD / source.with_suffix(f"{source.suffix}.o")
    depfile = output.with_suffix(".d")
    made = ("-MD", "-MF", str(depfile), "-c", str(source), "-o", str(output))
    return Step(output, (source,), (*command, *made), depfile)


def _link(
    command: tuple[str, ...], name: str, compiled: list[Step], torch: Torch | None = None, linker: str = "-Wl,"
) -> Step:
    """Return the step that links a part.

    No rpath: torch is in the process when its kernels are loaded, wherever it lies. libtorch.so is named although
    nothing in it is used, because on CUDA builds of torch it leads to libtorch_cuda.so, which has the current stream.
    """
    objects = tuple(step.output for step in compiled)
    output = BUILD / FILES[name]
    libraries: tuple[str, ...] = ()
    if torch is not None:
        libraries = (f"-L{torch.lib}", f"{linker}--no-as-needed", "-ltorch", "-ltorch_cpu")
        if name != "emulated":  # a module of Python, whose symbols are not there to link against
            libraries += (f"{linker}-z,defs",)
    return Step(output, objects, (*command, "-o", str(output), *map(str, objects), *libraries))


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text("utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _replace(source: Path, target: Path) -> None:
    """Copy a file into place at once: a process that runs the old one keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f"{target.name}.new")
    shutil.copy2(source, fresh)
    os.replace(fresh, target)
