"""Loading the compiled libraries beside this module; missing libraries are not an error.

A library that exists but does not load is an error, as silently missing kernels would only cost time. Nothing is
compiled here.
"""

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ftengine.ops.philox import ROUNDS

FILES = {device: Path(__file__).with_name(f"_ops_{device}.so") for device in ("cpu", "cuda")}
RECORD = Path(__file__).parents[1] / "build.json"
"""How the build was made; it writes that beside the libraries."""

ONEDNN_FROM, NEVER = 1 << 22, (1 << 63) - 1
"""The least M·N·K by which oneDNN's fixed cost, 0.3 ms where a size is new, is paid back; and none."""
ONEDNN_SCHEMAS = [
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y",
    "mkldnn::_linear_pointwise.binary(Tensor X, Tensor other, Tensor W, Tensor? B, str attr) -> Tensor Y",
]
"""What layers call, as csrc/cpu/layer.cpp has its arguments."""

DISABLE = "FTENGINE_DISABLE_EXTENSION"
REQUIRE = "FTENGINE_REQUIRE_EXTENSION"


def load() -> None:
    """Register the compiled kernels with torch.

    Raises:
        ImportError: a library does not load, or is missing although FTENGINE_REQUIRE_EXTENSION=1.
        ValueError: the two environment variables are neither 0 nor 1, or contradict each other.
    """
    disabled, required = _switch(DISABLE), _switch(REQUIRE)
    if disabled and required:
        raise ValueError(f"{DISABLE}=1 and {REQUIRE}=1 contradict each other; unset one of them")
    if disabled:
        return
    for device, file in FILES.items():
        if file.is_file():
            _load(file)
            if device == "cpu":
                _choose_onednn(str(file))
        elif required and (device == "cpu" or torch.cuda.is_available()):
            raise ImportError(
                f"{REQUIRE}=1, but this installation has no compiled kernels for {device} ({file.name} is missing); "
                f"`ftengine doctor` says why. Reinstall ftengine with FTENGINE_{device.upper()}=1, or unset {REQUIRE}"
            )


def why_absent(device_type: str) -> str:
    """Return why there is no compiled library for a device."""
    if _switch(DISABLE):
        return f"{DISABLE}=1"
    return f"no compiled library is installed for {device_type}"


def describe(device_type: str) -> str:
    """Describe the targets that a device's kernels were compiled for, and the one in use."""
    native, build = _native(), _build()
    built = build.get(device_type)
    if built is None:
        return f"kernels are registered for {device_type}"
    if device_type == "cuda":
        which = f"{', '.join(built['architectures'])} and PTX {built['ptx']}"
    else:
        any_of = "the best of " + ", ".join(built["instruction_sets"])
        which = native.instruction_set(str(FILES["cpu"])) if native else any_of
    onednn = "; products of float32 by oneDNN" if device_type == "cpu" and onednn_from() else ""
    return f"kernels for {which}, compiled against torch {build['torch']}{onednn}"


def cuda_version() -> int | None:
    """Return the major CUDA version that GPU kernels were compiled with; None if unknown."""
    built = _build().get("cuda")
    major = built["nvcc"].partition(".")[0] if built else ""
    return int(major) if major.isdecimal() else None


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that CPU kernels were compiled for and this processor has, the best first.

    () without kernels, and if the build lacked Python's headers, which the reporting module needs.
    """
    native = _native()
    if native is None or not FILES["cpu"].is_file() or _switch(DISABLE):
        return ()
    return tuple(native.instruction_sets(str(FILES["cpu"])).split(","))


def onednn_from() -> int | None:
    """Return the M·N·K from which oneDNN multiplies float32 matrices faster than torch's default.

    None if it is never faster: on processors without AVX-512, on Intel processors, without kernels, and while
    torch.backends.mkldnn is disabled.
    """
    native = _native()
    if native is None or not hasattr(native, "use_onednn") or not FILES["cpu"].is_file() or _switch(DISABLE):
        return None
    least = native.onednn_from(str(FILES["cpu"]))
    return least if least < NEVER and torch.backends.mkldnn.enabled else None


@contextmanager
def use_onednn(least: int = NEVER) -> Iterator[None]:
    """Let oneDNN multiply float32 matrices from some M·N·K on, on any processor; for tests and benchmarks.

    The setting applies to the whole process. Without kernels it does nothing.
    """
    native, library = _native(), str(FILES["cpu"])
    if native is None or not FILES["cpu"].is_file() or _switch(DISABLE):
        yield
        return
    before = native.onednn_from(library)
    native.use_onednn(library, least)
    try:
        yield
    finally:
        native.use_onednn(library, before)


def _choose_onednn(library: str) -> None:
    """Let layers use oneDNN where MKL, which torch multiplies float32 by, takes no AVX-512: on others than Intel's."""
    native = _native()
    if native is None or not hasattr(native, "use_onednn"):
        return
    wide = native.instruction_sets(library).startswith("avx512") and not native.is_intel()
    if wide and torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        operator = torch.ops.mkldnn._linear_pointwise
        if [str(getattr(operator, name)._schema) for name in operator.overloads()] == ONEDNN_SCHEMAS:
            native.use_onednn(library, ONEDNN_FROM)


@contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Use the CPU kernels of one instruction set; for tests and benchmarks.

    The setting applies to the whole process, other threads included.

    Args:
        name: one of instruction_sets(), or "auto" for the best.

    Raises:
        ValueError: the build or the processor lacks it; the message lists those that both have.
        RuntimeError: no CPU kernels are loaded.
    """
    if not FILES["cpu"].is_file() or _switch(DISABLE):
        raise RuntimeError(f"instruction set {name!r}: {why_absent('cpu')}, and the reference has none to choose from")
    native, library = _native(), str(FILES["cpu"])
    if native is None:
        raise RuntimeError(
            "instruction sets are chosen by ftengine._native, which this installation lacks; run `ftengine doctor`"
        )
    before = native.instruction_set(library)
    native.use_instruction_set(library, name)
    try:
        yield
    finally:
        native.use_instruction_set(library, before)


def _load(file: Path) -> None:
    build = _build()
    made = f"built against torch {build.get('torch', 'of unknown version')}"
    try:
        least = build.get("at_least_torch")
        if least and torch.torch_version.TorchVersion(torch.__version__) < least:
            raise OSError(f"it needs torch {least} or newer")
        if _cut_short(file):  # the loader would map it all the same, and the process die of it
            raise OSError("the file is cut short")
        torch.ops.load_library(file)
        rounds = getattr(ctypes.CDLL(str(file)), "ftengine_philox_rounds", None)
        if rounds is None or rounds() != ROUNDS:
            raise OSError("its dropout masks are those of another version of ftengine; rebuild the extension")
    except (OSError, RuntimeError) as error:
        cause = error.__cause__ or error  # torch wraps the loader's reason in a sentence without it
        raise ImportError(
            f"ftengine's compiled kernels do not load: {file} was {made}, running is torch {torch.__version__}: "
            f"{cause}. Reinstall ftengine in this environment, or set {DISABLE}=1 to compute without them"
        ) from error


def _cut_short(file: Path) -> bool:
    """Return whether an ELF file of 64 bits ends before its table of sections, which linkers write last."""
    with file.open("rb") as opened:
        header = opened.read(64)
    start, size, count = (int.from_bytes(header[a:b], "little") for a, b in ((40, 48), (58, 60), (60, 62)))
    return header[:5] == b"\x7fELF\x02" and file.stat().st_size < start + size * count


def _build() -> dict[str, Any]:
    """Return how the build was made; {} where nothing says."""
    try:
        return json.loads(RECORD.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _native() -> ModuleType | None:
    """Return the module that chooses instruction sets; None where there is none."""
    try:
        return import_module("ftengine._native")
    except ModuleNotFoundError:
        return None


def _switch(name: str) -> bool:
    value = os.environ.get(name, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{name}={value}: it may be 1 (yes) or 0 (no)")
    return value == "1"
