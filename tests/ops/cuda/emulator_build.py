"""The CUDA kernels compiled for the host, as emulated/ does it. A program: compiles what changed, for `make env`."""

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parents[3] / "csrc"))

from builder import BUILD, run_cmake
from toolchain import find_torch


def build_emulator(folder: Path | None = None, environ: Mapping[str, str] = os.environ, **definitions: str) -> Path:
    """Compile the module `_emulated_cuda` in a folder, by default one that is kept; return its file.

    Raises:
        Unavailable: there is no compiler, or no torch that it can be compiled against.
    """
    folder = folder or BUILD.with_name(f"{BUILD.name}-emulated")
    folder.parent.mkdir(parents=True, exist_ok=True)
    definitions = {"TORCH": str(find_torch()[0]), "Python_EXECUTABLE": sys.executable, **definitions}
    with FileLock(f"{folder}.lock"):  # several test processes may begin at once
        run_cmake(Path(__file__).with_name("emulated"), folder, environ, definitions)
    return folder / f"_emulated_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"


if __name__ == "__main__":
    build_emulator()
