"""The build backend: setuptools, and build requirements that depend on what will be compiled.

torch is a large download. It is asked for only where something will be compiled and the environment that pip installs
into has no torch to compile against; without a compiler nothing is asked for at all.
"""

import os
from typing import Any

from setuptools.build_meta import *  # noqa: F403 (the hooks that stay as they are)

from builder.parts import AT_LEAST_TORCH, setting, wants_compiler
from builder.steps import find_ninja
from builder.toolchain import Unavailable, find_compiler, find_nvcc, find_torch


# Without setuptools' own answer: it would run setup.py, which refuses to go on while torch is missing.
def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return what compiling needs beyond what is there."""
    try:
        if not wants_compiler(os.environ):
            return []
        compiler = find_compiler(os.environ)
        if setting("cpu", os.environ) == setting("emulated", os.environ) == "0":
            find_nvcc(os.environ, compiler)
    except Unavailable:
        return []
    missing = [] if find_ninja() else ["ninja"]
    try:
        find_torch(AT_LEAST_TORCH)
    except Unavailable:
        missing.append("torch>=" + ".".join(map(str, AT_LEAST_TORCH)))
    return missing


get_requires_for_build_editable = get_requires_for_build_wheel
