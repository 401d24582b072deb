"""Compiler calls and the order they run in: by ninja, or one after another where there is none."""

import importlib.util
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


class BuildError(SystemExit):
    """The build stops, with a message for whoever started it."""

    def __init__(self, message: str) -> None:
        super().__init__(f"error: {message}")


@dataclass(frozen=True)
class Step:
    """One call of a compiler.

    Args:
        output: the file it makes; paths are relative to the folder that run_steps is given.
        inputs: the files it reads that are known beforehand.
        command: the call.
        depfile: where it lists the headers it read; None for a link, which reads only `inputs`.
    """

    output: Path
    inputs: tuple[Path, ...]
    command: tuple[str, ...]
    depfile: Path | None = None


def run_steps(steps: Sequence[Step], root: Path, build: Path) -> None:
    """Run the steps in `root`, those only whose inputs or command changed where ninja is there to tell.

    Raises:
        BuildError: a compiler failed; what it printed went to stdout and stderr.
    """
    for step in steps:
        (root / step.output).parent.mkdir(parents=True, exist_ok=True)
    jobs = _jobs()
    ninja = find_ninja()
    try:
        if ninja:
            file = build / "build.ninja"
            (root / file).write_text(ninja_file(steps, build))
            subprocess.run([ninja, "-f", file, "-j", str(jobs)], cwd=root, check=True)
            return
        compiled = [step for step in steps if step.depfile]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda step: subprocess.run(step.command, cwd=root, check=True), compiled))
        for step in steps:
            if not step.depfile:
                subprocess.run(step.command, cwd=root, check=True)
    except subprocess.CalledProcessError as error:
        raise BuildError(
            "compiling ftengine's kernels failed; the reason stands above (pip shows it with -v). "
            "FTENGINE_CPU=0 FTENGINE_CUDA=0 installs without them"
        ) from error


def find_ninja() -> str | None:
    """Return a ninja that works: of PATH, else of the Python package, which need not be in PATH.

    In this order, so that pip's isolated builds and others find the same one: another version begins anew. An old
    package's program in PATH is a script that fails where a build is isolated.
    """
    candidates = [shutil.which("ninja")]
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        candidates.append(os.path.join(ninja.BIN_DIR, "ninja"))
    for program in filter(None, candidates):
        try:
            if subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0:
                return program
        except OSError:
            pass  # not there
    return None


def ninja_file(steps: Sequence[Step], build: Path) -> str:
    lines = [
        f"builddir = {_escape(build)}",
        "rule compile\n  command = $call\n  description = $in\n  depfile = $depfile\n  deps = gcc",
        "rule link\n  command = $call\n  description = $out",
    ]
    for step in steps:
        rule = "compile" if step.depfile else "link"
        lines.append(f"build {_escape(step.output)}: {rule} {' '.join(map(_escape, step.inputs))}")
        lines.append(f"  call = {shlex.join(step.command).replace('$', '$$')}")
        if step.depfile:
            lines.append(f"  depfile = {_escape(step.depfile)}")
    return "\n".join(lines) + "\n"


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _jobs() -> int:
    named = os.environ.get("MAX_JOBS")
    if not named:
        return os.cpu_count() or 1
    if not named.isdecimal() or int(named) == 0:
        raise BuildError(f"MAX_JOBS={named}: it must be a number of compilers that may run at once, such as 2")
    return int(named)
