"""The installations that there are, each as a real wheel, and how `ftengine doctor` tells them apart.

The compiler decides (nvcc too, C++ alone, none), and the torch that is compiled against may be another than runs.
"""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BUILT_OF = (
    *("csrc", "ftengine", "plugins", "tests"),
    *("CMakeLists.txt", "MANIFEST.in", "pyproject.toml", "setup.py", "README.md", "LICENSE"),
)
CHOICES = ("FTENGINE_", "CXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "PYTHONPATH")
READ = (".css", ".jinja", ".py", ".pyi", ".txt", ".typed")
"""What of the engine's folder a wheel has to hold: modules and templates."""
COMPILED = {"_native", "_ops_cpu", "_ops_cuda"}
OF_TESTS = re.compile(r"(^|/)(tests?|conftest\.py|test_\w+\.py|emulat\w*|avx512/)(/|$)")
"""Names of test code, the emulators of CUDA and AVX-512 among it."""

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources, nothing compiled; what one test compiles there, the next need not."""
    folder = tmp_path_factory.mktemp("tree")
    for name in BUILT_OF:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build.json")
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Return a C++ compiler that leaves out what takes long, optimising: what is built is not timed here."""
    compiler = tmp_path_factory.mktemp("compiler") / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("c++")} "$@" -O1\n')
    compiler.chmod(0o755)
    return str(compiler)


@pytest.fixture(scope="module")
def other_torch(tmp_path_factory):
    """Return a function that makes the torch to compile against the one here, called by another version."""
    folder = tmp_path_factory.mktemp("torch") / "torch"
    folder.mkdir()
    for part in ("include", "lib"):
        (folder / part).symlink_to(Path(torch.__file__).parent / part)

    def called(version):
        (folder / "version.py").write_text(f"__version__ = '{version}'\n")
        return str(folder.parent)

    return called


def environment(**changes):
    """Return this process's environment without what chooses a build, and with changes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(CHOICES)}
    return {**kept, **changes}


def without(program):
    """Return PATH without the folders that hold a program."""
    return os.pathsep.join(
        folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / program).exists()
    )


def make_wheel(tree, folder, **changes):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder]
    done = subprocess.run([*command, tree], env=environment(**changes), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel, folder):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(command, env=environment(), check=True)


def run_python(folder, *arguments, code=0):
    """Return what Python prints with an installation, and for the rest with the packages of this environment.

    -S leaves out .pth files: an editable ftengine would lend its compiled modules to an installation without any.
    """
    environ = environment(PYTHONPATH=os.pathsep.join([str(folder), *site.getsitepackages()]))
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, env=environ, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def doctor(folder, *arguments, code=0):
    return run_python(folder, "-m", "ftengine", "doctor", *arguments, code=code)


def compiled(folder):
    return {file.name.partition(".")[0] for file in folder.rglob("ftengine/**/*.so")}


@pytest.mark.slow
def test_archives_hold_what_is_compiled_and_what_is_read_and_no_tests(tree, tmp_path):
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path]
    command += ["bdist_wheel", "--dist-dir", tmp_path]
    subprocess.run(command, cwd=tree, env=environment(FTENGINE_CPU="0", FTENGINE_CUDA="0"), check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as held:
        names = {name.partition("/")[2] for name in held.getnames()}
    sources = {str(file.relative_to(tree)) for file in (tree / "csrc").rglob("*.*") if file.is_file()}
    needed = {name for name in sources if "__pycache__" not in name}
    assert needed | {"CMakeLists.txt", "setup.py", "pyproject.toml"} <= names
    assert {name for name in names if OF_TESTS.search(name)} == set()
    (wheel,) = tmp_path.glob("*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
    engine = {str(file.relative_to(tree)) for file in (tree / "ftengine").rglob("*") if file.suffix in READ}
    assert engine <= names
    assert {name for name in names if OF_TESTS.search(name) or name.endswith((".cpp", ".cu", ".so"))} == set()
    assert "ftengine_builtins/__init__.py" in names


@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_pure_python_and_works(tree, tmp_path):
    wheel = make_wheel(tree, tmp_path / "wheel", CXX="/nonexistent")
    assert wheel.name.endswith("-py3-none-any.whl")
    install(wheel, tmp_path / "site")
    assert compiled(tmp_path / "site") == set()
    found = json.loads(doctor(tmp_path / "site", "--json"))
    assert found["problems"] == []
    assert found["kernels"]["cpu"] == {"backend": "reference", "reason": "no compiled library is installed for cpu"}
    # Templates are no modules; they have to be named to be shipped.
    run_python(tmp_path / "site", "-m", "ftengine", "plugins", "new", "shout", "--kind", "strategy")
    assert (tmp_path / "ftengine-shout" / "ftengine_shout" / "strategy.py").is_file()
    assert "built no kernels" in found["build"]["line"]
    assert "CXX=/nonexistent" in found["build"]["line"]


@pytest.mark.slow
@needs_compiler
def test_with_a_compiler_alone_there_are_cpu_kernels_that_serve_another_torch(tree, quick, other_torch, tmp_path):
    path = without("nvcc")
    if shutil.which("c++", path=path) is None:
        pytest.skip("nvcc and the C++ compiler lie in one folder")
    wheel = make_wheel(tree, tmp_path / "wheel", PATH=path, CXX=quick, PYTHONPATH=other_torch("2.10.0"))
    assert re.search(r"-cp3\d+-cp3\d+-\w+\.whl$", wheel.name)
    folder = tmp_path / "site"
    install(wheel, folder)
    assert compiled(folder) == COMPILED - {"_ops_cuda"}
    found = json.loads(doctor(folder, "--json"))
    assert found["problems"] == []
    assert found["build"]["cuda"] is None
    assert found["build"]["left_out"]["cuda"].startswith("no nvcc")
    assert "baseline" in found["build"]["cpu"]["instruction_sets"]
    assert found["build"]["torch"] == "2.10.0"
    assert found["versions"]["torch"] == torch.__version__
    assert found["kernels"]["cpu"]["backend"] == "compiled"
    assert "compiled against torch 2.10.0" in found["kernels"]["cpu"]["reason"]

    # A torch that lacks what the library needs, seen from the other side.
    library = folder / "ftengine" / "ops" / "_ops_cpu.so"
    library.write_bytes(library.read_bytes().replace(b"\0torch_library_impl\0", b"\0torch_library_none\0"))
    found = json.loads(doctor(folder, "--json", code=1))
    (problem,) = [problem for problem in found["problems"] if problem.startswith("kernels could not be checked")]
    assert f"was built against torch 2.10.0, running is torch {torch.__version__}" in problem
    assert "undefined symbol: torch_library_none" in problem
    assert found["build"]["torch"] == "2.10.0"


@pytest.mark.slow
@needs_compiler
@needs_nvcc
def test_with_nvcc_there_are_cuda_kernels_that_load_without_a_gpu(tree, quick, other_torch, tmp_path):
    folder = tmp_path / "site"
    choices = {"FTENGINE_CPU": "1", "FTENGINE_CUDA": "1", "FTENGINE_CUDA_ARCHS": "90", "CXX": quick}
    install(make_wheel(tree, tmp_path / "wheel", **choices, PYTHONPATH=other_torch(torch.__version__)), folder)
    assert compiled(folder) == COMPILED
    found = json.loads(doctor(folder, "--json"))
    assert found["problems"] == []
    assert found["build"]["cuda"]["architectures"] == ["sm_90"]
    assert found["build"]["left_out"] == {}
    told = run_python(folder, "-c", "from ftengine.ops import active_backend; print(*active_backend('cuda'))")
    assert told.startswith("compiled kernels for sm_90 and PTX compute_90")
    for library in (folder / "ftengine" / "ops").glob("_ops_*.so"):
        told = subprocess.run(["readelf", "--dynamic", library], capture_output=True, text=True, check=True).stdout
        assert not re.search("RPATH|RUNPATH", told), f"{library.name} looks for torch where it was built"
