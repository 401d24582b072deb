"""The runs that the page shows, read from their folders, whether they are finished, being trained or stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ftengine import Recipe
from ftengine.errors import InputError, RunError, json_of_file

MOST_LINES = 4000
"""Lines of metrics.jsonl in one answer."""
QUIET_SECONDS = 60.0
"""Where the system does not tell who holds a lock, a run without news for so long counts as stopped."""
CURVES = ("loss", "validation_loss", "learning_rate", "grad_norm", "tokens_per_second", "reward")
"""Keys of metrics.jsonl that have curves."""

State = Literal["finished", "running", "stopped"]


@dataclass(frozen=True)
class StudioRun:
    """A run's folder.

    Args:
        path: the folder.
        name: what it is called on the page: the folder's name, with its parent's where two are equal.
    """

    path: Path
    name: str

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe (RecipeError: it is damaged)."""
        return Recipe.read(self.path / "recipe.yaml")

    @property
    def finished(self) -> bool:
        """Whether the run has figures and a trained part."""
        return (self.path / "evaluation.json").is_file() and (self.path / "adapter" / "ftengine.json").is_file()

    @property
    def is_trained(self) -> bool:
        """Whether the last step is done; a running process evaluates then."""
        return (self.path / "training.json").is_file()

    @property
    def state(self) -> State:
        """Whether a process writes into the folder, else whether the run came to its end."""
        if _is_locked(self.path / ".lock"):
            return "running"
        return "finished" if self.finished else "stopped"

    def read(self, name: str) -> Any:
        """Return one of the run's JSON files; None where it is missing (RunError: it is damaged)."""
        file = self.path / name
        try:
            return json_of_file(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"{str(file)!r} cannot be read: {error}.") from None

    def metrics(self, after: int, file_id: str) -> dict[str, Any]:
        """Return the lines of metrics.jsonl behind a position, at most `MOST_LINES`.

        Args:
            after: bytes that the caller has read.
            file_id: what this returned before as "file"; a resumed run writes another file, which is read anew.

        Returns:
            "lines" (each step with the keys of `CURVES` that it has), "after" and "file" for the next call, "anew"
            (whether the caller must forget earlier lines) and "more".
        """
        try:
            with open(self.path / "metrics.jsonl", "rb") as file:
                now = os.fstat(file.fileno())
                identity = f"{now.st_dev}-{now.st_ino}"
                anew = identity != file_id or now.st_size < after
                start = 0 if anew else after
                file.seek(start)
                lines, more = list[dict[str, float]](), False
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    if len(lines) == MOST_LINES:
                        more = True
                        break
                    start += len(line)
                    lines += _figures(line)
        except FileNotFoundError:
            return {"lines": [], "after": 0, "file": "", "anew": bool(file_id), "more": False}
        return {"lines": lines, "after": start, "file": identity, "anew": anew, "more": more}

    def summary(self) -> dict[str, Any]:
        """Return what the list of runs shows."""
        training, verdict = self.read("training.json") or {}, self.read("verdict.json") or {}
        return {
            "name": self.name,
            "folder": str(self.path),
            "state": self.state,
            "steps": training.get("planned_steps"),
            "headline": verdict.get("headline", ""),
            "level": verdict.get("level", ""),
        }

    def details(self) -> dict[str, Any]:
        """Return verdict, figures and answers before and after; empty where the run has none yet."""
        verdict, evaluation = self.read("verdict.json") or {}, self.read("evaluation.json") or {}
        examples = self.read("examples.json") or {}
        figures = [
            {"metric": metric, "base": _value(evaluation, "base", metric), "tuned": tuned.get("value")}
            | {"low": tuned.get("low"), "high": tuned.get("high")}
            | {"difference": _value(evaluation, "difference", metric)}
            for metric, tuned in (evaluation.get("tuned") or {}).items()
        ]
        findings = [{key: finding.get(key) for key in ("level", "text")} for finding in verdict.get("findings", ())]
        answers = [
            {key: answer.get(key) for key in ("place", "prompt", "wanted", "base", "tuned")}
            for answer in examples.get("answers") or ()
        ]
        return {**self.summary(), "findings": findings, "figures": figures, "answers": answers}

    def ask_to_stop(self) -> None:
        """Ask the process that trains to stop after its step (RunError: none trains, or the folder is read-only)."""
        if self.state != "running":
            raise RunError(f"run {self.name!r} is not being trained: it is {self.state}.")
        if self.is_trained:
            raise RunError(f"run {self.name!r} is behind its last step: it is being evaluated, and ends by itself.")
        try:
            (self.path / "stop").touch()
        except OSError as error:
            raise RunError(f"cannot write {str(self.path / 'stop')!r}: {error.strerror or error}.") from None


def maker_name(run: Path, home: Path) -> str:
    """Return a run's name in judgements that are in the folder of `home`: its path from the folder around `home`.

    It does not depend on which other runs are opened, and stays when all of them move together.
    """
    name = Path(os.path.relpath(run.resolve(), home.resolve().parent)).as_posix()
    return f"./{name}" if name in ("base", "tuned") else name  # which are names of sides


def _value(evaluation: Mapping[str, Any], side: str, metric: str) -> Any:
    return ((evaluation.get(side) or {}).get(metric) or {}).get("value")


def _figures(line: bytes) -> list[dict[str, float]]:
    try:
        content = json.loads(line)
        return [{key: content[key] for key in ("step", *CURVES) if isinstance(content.get(key), (int, float))}]
    except (ValueError, AttributeError, RecursionError):
        return []  # a damaged line is no reason not to show the others


def _is_locked(file: Path) -> bool:
    """Say whether a process holds a lock file, without taking it, which would fail a run that begins just now."""
    try:
        inode = file.stat().st_ino
    except OSError:
        return False
    try:
        locks = Path("/proc/locks").read_text()
    except OSError:
        newest = max((path.stat().st_mtime for path in file.parent.glob("*")), default=0.0)
        return time.time() - newest < QUIET_SECONDS
    return any(part.endswith(f":{inode}") for line in locks.splitlines() for part in line.split())


def find_runs(folders: Iterable[str | Path]) -> list[StudioRun]:
    """Return the runs in some folders, each a run or a folder of runs; by default those in `runs`, the newest first.

    Raises:
        InputError: a folder does not exist, or there is no run in it.
    """
    given = [Path(folder) for folder in folders]
    paths = [path for folder in given for path in _runs_of(folder)]
    if not given:
        paths = sorted(Path("runs").glob("*/recipe.yaml"), key=lambda file: -file.stat().st_mtime)
        paths = [file.parent for file in paths]
        if not paths:
            raise InputError(
                "no run is named, and the folder 'runs' here has none. Name one: `ftengine studio runs/support`."
            )
    unique = list({path.resolve(): path for path in paths}.values())
    return [StudioRun(path, name) for path, name in zip(unique, _names(unique), strict=True)]


def _runs_of(folder: Path) -> list[Path]:
    if (folder / "recipe.yaml").is_file():
        return [folder]
    inside = sorted(file.parent for file in folder.glob("*/recipe.yaml"))
    if not inside:
        what = "holds no recipe.yaml, nor do its folders" if folder.is_dir() else "is not a folder"
        raise InputError(f"{str(folder)!r} is not a run: it {what}. `ftengine train` writes the folders of runs.")
    return inside


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths by which they differ."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names
