"""What csrc/builder decides before it compiles anything; tests/test_install.py installs what it makes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "csrc"))

from builder import backend, parts, steps, toolchain
from builder.spills import spills

VARIABLES = ("FTENGINE_CPU", "FTENGINE_CUDA", "FTENGINE_CUDA_ARCHS", "FTENGINE_EMULATED", "CXX", "CUDACXX")


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tools(monkeypatch):
    """Stand in for the tools of a machine that has everything; tests take some away."""

    compiler = toolchain.Compiler(("c++",), "c++ 14.2")
    monkeypatch.setattr(toolchain.Compiler, "accepts", lambda self, *flags: True)
    found = {
        "find_compiler": lambda environ: compiler,
        "find_nvcc": lambda environ, compiler: toolchain.Nvcc(("nvcc",), "13.0", ("80", "90", "100", "120")),
        "find_torch": lambda at_least: toolchain.Torch(Path("/torch"), "2.12.0"),
        "find_python_headers": lambda: Path("/python"),
    }
    for name, find in found.items():
        monkeypatch.setattr(parts, name, find)

    def take_away(name, why):
        def missing(*_):
            raise toolchain.Unavailable(why)

        monkeypatch.setattr(parts, name, missing)

    monkeypatch.setattr(parts.platform, "machine", lambda: "x86_64")
    return take_away


def test_everything_there_is_built(tools):
    plan = parts.Plan({})
    assert set(plan.parts) == {"cpu", "cuda", "native"}
    assert plan.line == (
        "ftengine: built CPU kernels (baseline, avx2, avx512, avx512bf16; c++ 14.2), "
        "CUDA kernels (sm_80, sm_90, sm_100, sm_120 + PTX; nvcc 13.0)"
    )
    assert plan.record["torch"] == "2.12.0"


@pytest.mark.parametrize(
    ("tool", "built", "left_out"),
    [
        ("find_nvcc", {"cpu", "native"}, {"cuda"}),
        ("find_python_headers", {"cpu", "cuda"}, {"native"}),
        ("find_torch", set(), {"cpu", "cuda"}),
        ("find_compiler", set(), {"cpu", "cuda"}),
    ],
)
def test_what_a_missing_tool_leaves_out_is_said_with_the_reason(tools, tool, built, left_out):
    tools(tool, "it went missing")
    plan = parts.Plan({})
    assert set(plan.parts) == built
    assert plan.left_out == dict.fromkeys(left_out, "it went missing")
    assert plan.line.endswith("(it went missing)")
    assert "\n" not in plan.line


@pytest.mark.parametrize(("variable", "tool"), [("FTENGINE_CPU", "find_compiler"), ("FTENGINE_CUDA", "find_nvcc")])
def test_what_is_asked_for_and_cannot_be_built_fails(tools, variable, tool):
    tools(tool, "it went missing")
    with pytest.raises(steps.BuildError, match=f"{variable}=1, but it went missing"):
        parts.Plan({variable: "1"})


@pytest.mark.parametrize("variable", ["FTENGINE_CPU", "FTENGINE_CUDA", "FTENGINE_EMULATED"])
def test_other_values_are_refused_with_those_allowed(tools, variable):
    with pytest.raises(steps.BuildError, match=rf"{variable}=yes: it may be auto .* 1 .* 0"):
        parts.Plan({variable: "yes"})


def test_what_is_switched_off_is_left_out_and_said(tools):
    plan = parts.Plan({"FTENGINE_CPU": "0", "FTENGINE_CUDA": "0"})
    assert plan.parts == {}
    assert (
        plan.line == "ftengine: built no kernels; left out CPU kernels (FTENGINE_CPU=0); CUDA kernels (FTENGINE_CUDA=0)"
    )


def test_an_instruction_set_that_the_compiler_does_not_know_is_left_out_and_said(tools, monkeypatch):
    monkeypatch.setattr(toolchain.Compiler, "accepts", lambda self, *flags: "-mavx512bf16" not in flags)
    plan = parts.Plan({"FTENGINE_CUDA": "0"})
    assert plan.record["cpu"]["instruction_sets"] == ["baseline", "avx2", "avx512"]
    assert "avx512bf16 kernels (c++ 14.2 does not know" in plan.line
    calls = [" ".join(step.command) for step in plan.parts["cpu"].steps]
    assert not any("csrc/cpu/avx512bf16.cpp" in call for call in calls)
    assert not any("FTENGINE_HAVE_AVX512BF16" in call for call in calls)
    assert any("FTENGINE_HAVE_AVX512" in call for call in calls)


def test_instructions_of_one_source_are_allowed_to_no_other(tools):
    """A baseline kernel with one AVX instruction would crash the processors it is there for."""
    for step in parts.Plan({}).parts["cpu"].steps:
        allowed = parts.INSTRUCTION_SETS.get(step.inputs[0].stem, ())
        assert {flag for flag in step.command if flag.startswith("-m")} == {f for f in allowed if f.startswith("-m")}
        assert not {"-fopenmp", "-ffast-math", "-march=native"} & set(step.command)


def test_other_processors_get_the_baseline_alone(tools, monkeypatch):
    monkeypatch.setattr(parts.platform, "machine", lambda: "aarch64")
    plan = parts.Plan({"FTENGINE_CUDA": "0"})
    assert plan.record["cpu"]["instruction_sets"] == ["baseline"]
    assert "avx" not in plan.line


def test_architectures_that_nvcc_does_not_know_are_left_out_and_said(tools, monkeypatch):
    monkeypatch.setattr(parts, "find_nvcc", lambda *_: toolchain.Nvcc(("nvcc",), "12.4", ("80", "90")))
    plan = parts.Plan({})
    assert plan.record["cuda"]["architectures"] == ["sm_80", "sm_90"]
    assert plan.record["cuda"]["ptx"] == "compute_80"
    assert "left out sm_100, sm_120 (nvcc 12.4 does not know them)" in plan.line


def test_architectures_can_be_chosen(tools):
    plan = parts.Plan({"FTENGINE_CUDA_ARCHS": "90a,80"})
    assert plan.record["cuda"]["architectures"] == ["sm_90a", "sm_80"]
    assert plan.record["cuda"]["ptx"] == "compute_80"
    with pytest.raises(steps.BuildError, match=r"FTENGINE_CUDA_ARCHS=70,80: nvcc 13.0 does not know 70. It knows 80, "):
        parts.Plan({"FTENGINE_CUDA_ARCHS": "70,80"})


# What pip is asked to fetch for a build


@pytest.fixture
def wanted(monkeypatch):
    """Return wanted(compiler, torch, ninja) -> what the backend asks for where these are there or not."""

    def ask(compiler=True, torch=True, ninja=True):
        def find(there):
            def found(*_):
                if not there:
                    raise toolchain.Unavailable("it went missing")

            return found

        monkeypatch.setattr(backend, "find_compiler", find(compiler))
        monkeypatch.setattr(backend, "find_torch", find(torch))
        monkeypatch.setattr(backend, "find_ninja", lambda: "ninja" if ninja else None)
        return backend.get_requires_for_build_wheel()

    return ask


def test_an_installed_torch_is_used_and_none_is_fetched(wanted):
    assert wanted() == []
    assert wanted(ninja=False) == ["ninja"]


def test_torch_is_fetched_to_compile_where_none_is_installed(wanted):
    assert wanted(torch=False) == ["torch>=2.10"]


def test_nothing_is_fetched_where_nothing_will_be_compiled(wanted, monkeypatch):
    assert wanted(compiler=False, torch=False, ninja=False) == []
    monkeypatch.setenv("FTENGINE_CPU", "0")
    monkeypatch.setenv("FTENGINE_CUDA", "0")
    assert wanted(torch=False, ninja=False) == []


def test_nothing_is_fetched_for_gpu_kernels_alone_where_no_nvcc_is(wanted, monkeypatch):
    def missing(*_):
        raise toolchain.Unavailable("no nvcc")

    monkeypatch.setattr(backend, "find_nvcc", missing)
    monkeypatch.setenv("FTENGINE_CPU", "0")
    monkeypatch.setenv("FTENGINE_EMULATED", "0")
    assert wanted(torch=False, ninja=False) == []


def test_torch_is_asked_for_before_anything_refuses_to_go_on_without_it(wanted, monkeypatch):
    monkeypatch.setenv("FTENGINE_CPU", "1")
    assert wanted(torch=False) == ["torch>=2.10"]
    assert backend.get_requires_for_build_wheel() == ["torch>=2.10"]
    assert backend.get_requires_for_build_editable() == ["torch>=2.10"]


def test_a_number_of_compilers_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "many")
    with pytest.raises(steps.BuildError, match="MAX_JOBS=many: it must be a number"):
        steps.run_steps([], Path(), Path())


def test_torch_is_found_beside_python_where_the_path_holds_build_requirements_alone(monkeypatch):
    """As pip isolates builds."""
    monkeypatch.setattr(sys, "path", [])
    assert toolchain.find_torch((2, 10)).version == str(torch.__version__)


def test_an_older_torch_is_not_compiled_against(monkeypatch, tmp_path):
    (tmp_path / "torch" / "include" / "torch" / "csrc").mkdir(parents=True)
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.9.1'\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(toolchain.site, "getsitepackages", list)
    with pytest.raises(toolchain.Unavailable, match=r"only torch 2\.9\.1 .* 2\.10 or newer"):
        toolchain.find_torch((2, 10))


# Tools


def test_a_compiler_that_is_named_and_absent_is_not_replaced_by_another():
    with pytest.raises(toolchain.Unavailable, match="CXX=/nonexistent"):
        toolchain.find_compiler({"CXX": "/nonexistent"})


def test_a_compiler_that_fails_is_reported_with_what_it_says(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'error: licence expired' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(toolchain.Unavailable, match="licence expired"):
        toolchain.find_compiler({"CXX": str(compiler)})


LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z6shrinkv' for 'sm_90'
ptxas info    : Function properties for _Z6shrinkv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers
ptxas info    : Compiling entry function '_Z5mergev' for 'sm_80'
ptxas info    : Function properties for _Z5mergev
    16 bytes stack frame, 0 bytes spill stores, 20 bytes spill loads
"""


def test_a_kernel_that_spills_registers_is_found():
    (found,) = spills(LOG)
    assert "_Z5mergev for sm_80" in found
    assert "20 bytes spill loads" in found


def test_a_spill_fails_the_build(tmp_path):
    script = Path(parts.__file__).with_name("spills.py")
    (tmp_path / "log").write_text(LOG)
    done = subprocess.run(
        [sys.executable, script, "cat", tmp_path / "log"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "error: registers spill in _Z5mergev for sm_80: " + LOG.splitlines()[-1].strip() + "\n"
    done = subprocess.run([sys.executable, script, "sh", "-c", "exit 3"], check=False)
    assert done.returncode == 3


# Running the steps


@pytest.mark.parametrize("ninja", [True, False])
def test_a_failing_compiler_stops_the_build_with_what_to_do(monkeypatch, tmp_path, ninja):
    if not ninja:
        monkeypatch.setattr(steps, "find_ninja", lambda: None)
    step = steps.Step(Path("build/out.o"), (), ("false",), Path("build/out.d"))
    with pytest.raises(steps.BuildError, match="FTENGINE_CPU=0"):
        steps.run_steps([step], tmp_path, Path("build"))


def test_ninja_runs_only_what_changed_headers_concern(tmp_path):
    if steps.find_ninja() is None:
        pytest.skip("ninja is not installed")
    log, build = tmp_path / "log", Path("build dir")
    (tmp_path / "x.h").touch()
    (tmp_path / "x.cpp").touch()

    def compile_x():
        script = f"echo compiled >> {log}; echo 'out.o: x.h' > '{build}/out.d'; touch '{build}/out.o'"
        step = steps.Step(build / "out.o", (Path("x.cpp"),), ("sh", "-c", script), build / "out.d")
        steps.run_steps([step], tmp_path, build)
        return len(log.read_text().splitlines())

    assert [compile_x(), compile_x()] == [1, 1]
    (tmp_path / "x.h").touch()
    assert compile_x() == 2
