"""Builds the compiled extension, nothing else. Metadata lives in pyproject.toml.

`python setup.py build_ext --inplace` compiles into the source tree, as an editable installation does.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command import build, build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))

from builder import ROOT, plan


class KernelDistribution(Distribution):
    """Is for one platform where something is compiled, and for any where nothing is."""

    def has_ext_modules(self) -> bool:
        return bool(plan().parts)


class Build(build.build):
    # Also where nothing is compiled, to record why.
    sub_commands = [("build_py", None), ("build_ext", None), ("build_scripts", build.build.has_scripts)]  # noqa: RUF012


class BuildKernels(build_ext.build_ext):
    made: Sequence[str] = ()

    def run(self) -> None:
        self.made = plan().build(ROOT if self.inplace else Path(self.build_lib))

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib) / file) for file in self.made]

    def get_output_mapping(self) -> dict[str, str]:
        return dict(zip(self.get_outputs(), self.made, strict=True)) if self.inplace else {}


setup(distclass=KernelDistribution, cmdclass={"build": Build, "build_ext": BuildKernels})
