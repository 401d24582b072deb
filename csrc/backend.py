"""The build backend: setuptools, and build requirements that depend on what will be compiled.

torch is a large download. It is asked for only where something will be compiled and the environment that pip installs
into has no torch to compile against; without a compiler nothing is asked for at all.
"""

import os
from typing import Any

from builder import setting
from setuptools.build_meta import *  # noqa: F403 (the hooks that stay as they are)
from toolchain import AT_LEAST, AT_LEAST_TORCH, Unavailable, find_compiler, find_nvcc, find_program, find_torch


# Without setuptools' own answer: it would run setup.py, which refuses to go on while torch is missing.
def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return what compiling needs beyond what is there."""
    try:
        find_compiler(os.environ)
        if setting("cpu", os.environ) == "0":
            if setting("cuda", os.environ) == "0":
                return []
            find_nvcc(os.environ)
    except Unavailable:
        return []
    missing = []
    for name, least in {**AT_LEAST, "torch": AT_LEAST_TORCH}.items():
        try:
            find_torch() if name == "torch" else find_program(name)
        except Unavailable:
            missing.append(f"{name}>={'.'.join(map(str, least))}")
    return missing


get_requires_for_build_editable = get_requires_for_build_wheel
