"""Compiled libraries: absent, present, broken, and which instruction set runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from expected import raises

from ftengine.ops import active_backend, instruction_sets, library, use_instruction_set

compiled = pytest.mark.skipif(active_backend()[0] != "compiled", reason=active_backend()[1])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where libraries are looked for: an empty folder, built against torch 2.99 as far as anyone knows."""
    monkeypatch.setattr(library, "FILES", {name: tmp_path / f"_ops_{name}.so" for name in library.FILES})
    monkeypatch.setattr(library, "RECORD", tmp_path / "build.json")
    library.RECORD.write_text('{"torch": "2.99.0", "at_least_torch": "2.10"}')
    for name in (library.DISABLE, library.REQUIRE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(("gpu", "missing"), [(False, "cpu"), (True, "cuda")])
def test_required_library_that_is_absent_is_an_error(place, monkeypatch, gpu, missing):
    monkeypatch.setenv(library.REQUIRE, "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    if gpu:  # only that of the GPU is missing
        library.FILES.pop("cpu")
    with raises(ImportError, missing, f"FTENGINE_{missing.upper()}=1"):
        library.load()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_broken_library_is_an_error_that_names_both_torches(place, device):
    library.FILES[device].write_bytes(b"\x7fELF, but no more")
    with pytest.raises(ImportError) as error:
        library.load()
    for expected in ("torch 2.99.0", f"torch {torch.__version__}", str(library.FILES[device]), "Reinstall"):
        assert expected in str(error.value)


@compiled
def test_a_library_of_other_masks_is_an_error(monkeypatch):
    """As in a checkout that was updated and not built anew."""
    monkeypatch.setattr(library, "ROUNDS", library.ROUNDS + 1)
    with raises(ImportError, "dropout masks", "Reinstall"):
        library.load()


@compiled
def test_a_library_that_was_cut_short_is_an_error_and_no_crash(place):
    """As a full disk or a broken download leaves it; mapping what is missing would kill the process."""
    whole = Path(library.__file__).with_name("_ops_cpu.so").read_bytes()
    for share in (0.1, 0.5, 0.99):
        library.FILES["cpu"].write_bytes(whole[: int(len(whole) * share)])
        with raises(ImportError, "cut short"):
            library.load()


def test_torch_older_than_the_stable_abi_is_an_error_that_names_both(place, monkeypatch):
    library.FILES["cpu"].touch()
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1"))
    with raises(ImportError, "2.99.0", "2.9.1", "2.10"):
        library.load()


def test_contradicting_switches_are_refused(place, monkeypatch):
    monkeypatch.setenv(library.DISABLE, "1")
    monkeypatch.setenv(library.REQUIRE, "1")
    with raises(ValueError, "contradict"):
        library.load()


@pytest.mark.slow
def test_disabled_libraries_are_not_loaded():
    program = "from ftengine.ops import active_backend, instruction_sets; print(active_backend(), instruction_sets())"
    environ = {**os.environ, library.DISABLE: "1", library.REQUIRE: "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == f"('reference', '{library.DISABLE}=1') ()\n"


@compiled
def test_every_instruction_set_can_be_forced_and_is_given_back():
    before = active_backend()
    assert "baseline" in instruction_sets()
    for name in instruction_sets():
        with use_instruction_set(name):
            assert active_backend()[1].startswith(f"kernels for {name}, compiled against torch ")
        assert active_backend() == before


@compiled
def test_unknown_instruction_set_is_refused_with_those_that_exist():
    with raises(ValueError, "'sse9'"), use_instruction_set("sse9"):
        pass
