"""Several processes that work together, forked from one that has imported torch: a fraction of a start of torchrun."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "accelerate", "transformers", "ftengine.engine.fine_tune"])


@dataclass(frozen=True)
class Rank:
    """One of the processes, and where what it prints goes."""

    process: BaseProcess
    said: Path

    def ended(self, timeout: float = 200) -> tuple[int | None, str]:
        """Wait for its end; return its exit status, None where it goes on, and what it said."""
        self.process.join(timeout)
        return self.process.exitcode, self.said.read_text()


def start(folder: Path, target: Callable[..., Any], *args: Any, ranks: int = 2, **variables: str) -> list[Rank]:
    """Start processes as torchrun does.

    Args:
        folder: where what they print goes.
        target: what each of them calls, of a module.
        variables: of the environment, beside those of this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), **variables}
    started = []
    for rank in range(ranks):
        said = folder / f"rank-{rank}.txt"
        own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = CONTEXT.Process(target=_run, args=(own, str(said), target, args), daemon=True)
        process.start()
        started.append(Rank(process, said))
    return started


def together(folder: Path, target: Callable[..., Any], *args: Any, ranks: int = 2, **variables: str) -> None:
    """Start processes and wait for them; each ends with status 0."""
    for number, rank in enumerate(start(folder, target, *args, ranks=ranks, **variables)):
        status, said = rank.ended()
        assert status == 0, f"rank {number}: {status}\n{said}"


def _run(environment: Mapping[str, str], said: str, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(said, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    target(*args)


def train(*recipes: str, resume: bool = False) -> None:
    """Call `ftengine train` for recipe files, one after the other."""
    from ftengine.cli import main

    for recipe in recipes:
        main(["train", recipe, *(["--resume"] if resume else [])], standalone_mode=False)
