"""What csrc/builder.py decides before CMake compiles anything; tests/test_install.py installs what comes of it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from expected import raises

sys.path.insert(0, str(Path(__file__).parents[1] / "csrc"))

import backend
import builder
import toolchain
from builder import ROOT, BuildError, Plan
from toolchain import Unavailable

VARIABLES = ("FTENGINE_CPU", "FTENGINE_CUDA", "FTENGINE_CUDA_ARCHS", "CXX", "CUDACXX")
FACTS = {
    "compiler": "GNU 14.2.0",
    "files": ["cpu", "cuda", "_native"],
    "cpu": {"instruction_sets": ["baseline", "avx2"], "unknown": [], "flags": ["-O3"]},
    "cuda": {"nvcc": "13.0.88", "flags": ["-O3"]},
}
"""What CMake says of a build."""


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def missing(*_):
    raise Unavailable("it went missing")


@pytest.fixture
def tools(monkeypatch):
    """Stand in for the tools of a machine that has everything; returns a function that takes one away."""
    found = {
        "find_compiler": lambda environ: ("c++",),
        "find_nvcc": lambda environ: (["nvcc"], "c++"),
        "find_torch": lambda: (Path("/torch"), "2.12.0"),
        "find_program": lambda name: name,
        "known_architectures": lambda nvcc: ["80", "90", "100", "120"],
    }
    for name, find in found.items():
        monkeypatch.setattr(builder, name, find)
    return lambda tool: monkeypatch.setattr(builder, tool, missing)


def facts(**changes):
    return {name: dict(fact) if isinstance(fact, dict) else fact for name, fact in {**FACTS, **changes}.items()}


def test_everything_there_is_built_and_recorded(tools):
    plan = Plan({})
    assert set(plan.parts) == {"cpu", "cuda"}
    assert plan.parts["cuda"]["CMAKE_CUDA_ARCHITECTURES"] == "80-real;90-real;100-real;120-real;80-virtual"
    record = plan.record(facts())
    assert (record["torch"], record["compiler"], record["left_out"]) == ("2.12.0", "GNU 14.2.0", {})
    assert record["cpu"] == {"instruction_sets": ["baseline", "avx2"], "flags": ["-O3"]}
    assert record["cuda"]["architectures"] == ["sm_80", "sm_90", "sm_100", "sm_120"]
    assert (record["cuda"]["nvcc"], record["cuda"]["ptx"]) == ("13.0.88", "compute_80")


@pytest.mark.parametrize(
    ("tool", "left_out"),
    [
        ("find_nvcc", {"cuda"}),
        ("find_torch", {"cpu", "cuda"}),
        ("find_compiler", {"cpu", "cuda"}),
        ("find_program", {"cpu", "cuda"}),
    ],
)
def test_what_a_missing_tool_leaves_out_is_reported_with_the_reason_in_one_line(tools, tool, left_out):
    tools(tool)
    plan = Plan({})
    assert set(plan.parts) == {"cpu", "cuda"} - left_out
    record = plan.record(facts(cuda=None) if plan.parts else {})
    assert record["left_out"] == dict.fromkeys(left_out, "it went missing")
    assert record["line"].endswith("(it went missing)")
    assert "\n" not in record["line"]


@pytest.mark.parametrize(("variable", "tool"), [("FTENGINE_CPU", "find_compiler"), ("FTENGINE_CUDA", "find_nvcc")])
def test_what_is_asked_for_and_cannot_be_built_fails(tools, variable, tool):
    tools(tool)
    with raises(BuildError, f"{variable}=1"):
        Plan({variable: "1"})


def test_what_is_switched_off_is_left_out_and_recorded(tools, tmp_path):
    plan = Plan({"FTENGINE_CPU": "0", "FTENGINE_CUDA": "0"})
    assert plan.parts == {}
    stale = tmp_path / builder.FILES["cpu"]
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert plan.build(tmp_path, tmp_path / "build") == [builder.RECORD]
    assert not stale.exists()
    record = json.loads((tmp_path / builder.RECORD).read_text("utf-8"))
    assert record["left_out"] == {"cpu": "FTENGINE_CPU=0", "cuda": "FTENGINE_CUDA=0"}


def test_architectures_that_nvcc_does_not_know_are_left_out_and_recorded(tools, monkeypatch):
    monkeypatch.setattr(builder, "known_architectures", lambda nvcc: ["80", "90"])
    plan = Plan({})
    assert plan.parts["cuda"]["CMAKE_CUDA_ARCHITECTURES"] == "80-real;90-real;80-virtual"
    assert set(plan.left_out) == {"sm_100", "sm_120"}


def test_architectures_can_be_chosen(tools):
    plan = Plan({"FTENGINE_CUDA_ARCHS": "90a,80"})
    assert plan.parts["cuda"]["CMAKE_CUDA_ARCHITECTURES"] == "90a-real;80-real;80-virtual"
    assert plan.record(facts())["cuda"]["architectures"] == ["sm_90a", "sm_80"]
    with raises(BuildError, "FTENGINE_CUDA_ARCHS=70,80"):
        Plan({"FTENGINE_CUDA_ARCHS": "70,80"})


# What pip is asked to fetch for a build


@pytest.fixture
def wanted(monkeypatch):
    """Return wanted(compiler, torch, programs) -> what the backend asks for where these are there or not."""

    def ask(compiler=True, torch=True, programs=True):
        for name, there in (("find_compiler", compiler), ("find_torch", torch), ("find_program", programs)):
            monkeypatch.setattr(backend, name, (lambda *_: None) if there else missing)
        return {requirement.partition(">")[0] for requirement in backend.get_requires_for_build_wheel()}

    return ask


# Tools


def test_an_older_torch_is_not_compiled_against(monkeypatch, tmp_path):
    (tmp_path / "torch" / "include" / "torch" / "csrc").mkdir(parents=True)
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.9.1'\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(toolchain.site, "getsitepackages", list)
    with raises(Unavailable, "2.9.1", "2.10"):
        toolchain.find_torch()


def test_a_compiler_that_fails_is_reported_with_what_it_says(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'error: licence expired' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with raises(Unavailable, "licence expired"):
        toolchain.find_compiler({"CXX": str(compiler)})


def test_an_old_cmake_is_not_used(tmp_path, monkeypatch):
    for name, version in (("cmake", "3.10.2"), ("ninja", "1.11.1")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho {name} version {version}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: str(tmp_path))
    assert toolchain.find_program("ninja") == str(tmp_path / "ninja")
    with raises(Unavailable, "no cmake"):
        toolchain.find_program("cmake")


# CMake


needs_tools = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("c++", "cmake", "ninja")), reason="there is no compiler, CMake or ninja"
)


@pytest.fixture
def project(tmp_path):
    """A library of one source and one header, and a function that builds it and returns its time of building."""
    for name, text in {
        "CMakeLists.txt": "cmake_minimum_required(VERSION 3.22)\nproject(x CXX)\nadd_library(x MODULE x.cpp)\n",
        "x.cpp": '#include "x.h"\n',
        "x.h": "int x();\n",
    }.items():
        (tmp_path / name).write_text(text)

    def build(**definitions):
        builder.run_cmake(tmp_path, tmp_path / "b", dict(builder.os.environ), definitions)
        return (tmp_path / "b" / "libx.so").stat().st_mtime_ns

    return build


@pytest.mark.slow
@needs_tools
def test_what_changed_is_compiled_and_all_where_definitions_change(project, tmp_path):
    first = project(A="1")
    assert project(A="1") == first
    (tmp_path / "x.h").write_text("int y();\n")
    second = project(A="1")
    assert second > first
    assert project(A="2") > second


@pytest.mark.slow
@needs_tools
def test_a_failing_compiler_stops_the_build_with_what_to_do(project, tmp_path):
    (tmp_path / "x.cpp").write_text("no C++\n")
    with raises(BuildError, "FTENGINE_CPU=0"):
        project()


SPILLS = """
__global__ void __launch_bounds__(1024, 2) kernel(const float* x, float* y) {
  float a[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) a[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) y[i * 1024 + threadIdx.x] = a[i] * a[127 - i];
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_a_kernel_that_spills_registers_fails_the_build(tmp_path):
    flags = re.findall(r"-Xptxas=\S+", (ROOT / "CMakeLists.txt").read_text("utf-8"))
    for name, source in {"spills": SPILLS, "sound": SPILLS.replace("128", "8").replace("127", "7")}.items():
        (tmp_path / f"{name}.cu").write_text(source)
        command = ["nvcc", "-arch=sm_80", "-O3", *flags, "-cubin", f"{name}.cu"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == (name == "spills"), done.stdout + done.stderr
