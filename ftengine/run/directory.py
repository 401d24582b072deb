"""The directory of a run, whose files are written atomically."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ftengine.errors import RunError, json_of_file, system_limit

TRAINED = "adapter"
"""Folder of the trained part, in the format of its ecosystem, such as peft's."""
SIDECAR = "ftengine.json"
"""File with ftengine's facts in the folder of the trained part."""
PARTIAL = ".partial"
"""Suffix of files that are being written; those that a killed run leaves are removed on resume."""
LOCK = ".lock"
"""Lock file, held while a process writes into the folder."""
RECORDS_LOCK = ".records.lock"
"""Lock file, held while a process writes the records of a finished run anew; it stays, so that all wait for one."""
RECORDS_SECONDS = 60.0
STOP = "stop"
"""File that asks a run to stop after its step, as Ctrl-C does; anything may create it."""
METRICS, DRAWS = "metrics.jsonl", "draws.jsonl"
"""Files with a line a step or more: figures, and answers that an on-policy task drew."""
BEFORE_RECIPE = ("audit.json", "environment.json", LOCK)
"""Files written before recipe.yaml; a run that is killed before that cannot be resumed."""


class RunDirectory:
    """The files of one run. Each file is written under a temporary name and renamed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def trained(self) -> Path:
        return self.path / TRAINED

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        return (self.path / "evaluation.json").is_file() and self.trained.is_dir() and not self.unchecked

    @property
    def unchecked(self) -> str:
        """Why the trained part is not checked to give the tuned model back; "" if it is, or if there is none."""
        try:
            facts = json_of_file(self.trained / SIDECAR)
        except (OSError, ValueError):
            return ""
        return str(facts.get("unchecked", "")) if isinstance(facts, dict) else ""

    def require_free(self, other: str = "another with --set output=DIR") -> None:
        """Refuse a file or a folder that is not empty (RunError); `other` tells the user how to choose another."""
        if self._holds_something():
            held = "a finished run" if self.finished else "an unfinished run" if self.is_run() else "other files"
            do = "Continue it with --resume, or" if held == "an unfinished run" else "Please"
            raise RunError(f"output {str(self.path)!r} is not empty: it holds {held}. {do} choose {other}.")
        self._require_directory()

    def _holds_something(self) -> bool:
        return self.path.is_dir() and any(
            self.is_run() or (file.name not in BEFORE_RECIPE and file.suffix != PARTIAL) for file in self.path.iterdir()
        )

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder, which must exist, for this process (RunError: another process writes into it)."""
        return locked(self.path / LOCK, f"folder {str(self.path)!r}")

    def records_locked(self) -> AbstractContextManager[None]:
        """Lock the records of a finished run, after other processes have written them (RunError: one takes long)."""
        return locked(self.path / RECORDS_LOCK, f"run {str(self.path)!r}", RECORDS_SECONDS)

    def require_unlocked(self) -> None:
        """Refuse a folder that another process writes into (RunError)."""
        if (self.path / LOCK).exists():
            with self.locked():
                pass

    def require_finished(self, *needed: str) -> None:
        """Refuse a folder that is not a run, is not finished, or lacks one of the files `needed` (RunError)."""
        if not self.is_run():
            what = "does not exist" if not self.path.exists() else "holds no recipe.yaml"
            hint = "`ftengine train` writes run directories."
            if (self.path / "config.json").is_file():
                hint = f"It is a model: open it with transformers, or with `model.source: {self.path}` in a recipe."
            raise RunError(f"{str(self.path)!r} is not a run directory: it {what}. {hint}")
        missing = [name for name in needed if not (self.path / name).is_file()]
        if not (self.trained / SIDECAR).is_file():
            missing.append(f"{TRAINED}/")
        if missing or (needed and self.unchecked):
            what = (
                f"it has no {', '.join(missing)}" if missing else f"its trained part is not checked: {self.unchecked}"
            )
            raise RunError(
                f"run {str(self.path)!r} is not finished: {what.rstrip('.')}. "
                "Continue it with `ftengine train RECIPE --resume` and the options that started it."
            )

    def is_run(self) -> bool:
        return (self.path / "recipe.yaml").is_file()

    def _require_directory(self) -> None:
        if "\0" in str(self.path):
            raise RunError(f"output {str(self.path)!r} holds a null character, which no path can have.")
        for place in (self.path, *self.path.parents):
            if place.exists():
                if not place.is_dir():
                    raise RunError(f"output {str(self.path)!r}: {str(place)!r} is a file, not a folder.")
                if not os.access(place, os.W_OK):
                    raise RunError(f"output {str(self.path)!r}: no permission to write in {str(place)!r}.")
                return

    def create(self) -> None:
        """Make the folder and its parents."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file atomically (RunError: it cannot be written; nothing half-written stays)."""
        target = self.path / name
        partial = target.with_name(target.name + PARTIAL)
        with writing(target, partial):
            partial.write_text(text, encoding="utf-8")
            partial.replace(target)
        return target

    def write_json(self, name: str, value: Any) -> Path:
        """Write JSON atomically; see `write_text`."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            # UTF-8 cannot hold half of a surrogate pair, which JSON data may have; as an escape it can.
            text = json.dumps(value, indent=2, allow_nan=False)
        return self.write_text(name, text + "\n")

    def write_yaml(self, name: str, value: Any) -> Path:
        """Write YAML atomically; see `write_text`."""
        return self.write_text(name, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))

    def read_json(self, name: str) -> Any:
        """Read one of the run's JSON files (RunError: it is missing or damaged)."""
        file = self.path / name
        try:
            return json_of_file(file)
        except FileNotFoundError:
            raise RunError(f"{str(file)!r} is missing.") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{str(file)!r} cannot be read: {error}.") from None

    def clear_partial(self) -> None:
        """Remove half-written files of a killed run (RunError: one cannot be removed)."""
        for leftover in self.path.rglob("*" + PARTIAL):
            self.remove(leftover)

    def remove(self, path: Path) -> None:
        """Remove one of the run's files or folders, if it exists (RunError: it cannot be removed)."""
        with writing(path):
            remove(path)

    def append_steps(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines with a "step", of finite numbers and nulls, to METRICS or DRAWS."""
        with writing(self.path / name), open(self.path / name, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)

    def metrics(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl; see `steps_in`."""
        return self.steps_in(METRICS)

    def steps_in(self, name: str) -> list[dict[str, Any]]:
        """Read METRICS or DRAWS; a last line cut off by a kill is left out (RunError: another line is damaged)."""
        file = self.path / name
        if not file.is_file():
            return []
        rows, lines = [], file.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                content["step"] + 0
            except (ValueError, KeyError, TypeError, RecursionError):
                if number < len(lines):
                    raise RunError(
                        f"{str(file)!r}: line {number} is damaged. Remove it, or restore the file."
                    ) from None
            else:
                rows.append(content)
        return rows

    def keep_steps(self, up_to_step: int) -> None:
        """Drop the lines of METRICS and DRAWS after a step; a resumed run writes them again."""
        for name in (METRICS, DRAWS):
            if name == METRICS or (self.path / name).is_file():
                lines = [line for line in self.steps_in(name) if line["step"] <= up_to_step]
                self.write_text(name, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def write_folder(target: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a temporary folder and rename it, replacing an older one (RunError: it fails, and the older one stays)."""
    partial = target.with_name(target.name + PARTIAL)
    with writing(target, partial):
        remove(partial)
        partial.mkdir(parents=True)
        fill(partial)
        follow_umask(partial)
        flush(partial)
        old = target.with_name(target.name + ".old" + PARTIAL)
        remove(old)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        flush(target.parent, inside=False)
        remove(old)
    return target


def flush(path: Path, *, inside: bool = True) -> None:
    """Flush a file, or a folder and with `inside` its files, to the disk, so that they survive a loss of power."""
    for file in (*(path.rglob("*") if inside and path.is_dir() else ()), path):
        opened = os.open(file, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def follow_umask(path: Path) -> None:
    """Give files the permissions of the umask; safetensors makes files that only the owner can read."""
    probe = path.with_name(f"{path.name}.mode{PARTIAL}")
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and file.stat().st_mode & 0o777 == 0o600:
            file.chmod(mode)


@contextmanager
def locked(file: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """Create a lock file and hold it during the block; the lock ends with the process.

    Args:
        what: name of the locked thing in the error.
        wait: seconds to wait for another process. The file stays then: one that is removed locks those who opened it
            before, but nobody who comes later.

    Raises:
        RunError: another process holds it, or the file cannot be made.
    """
    lock = FileLock(file, timeout=wait)
    with writing(file):
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"{what} is in use: another process is writing to it. Wait until it ends, or choose another place."
            ) from None
    try:
        yield
    finally:
        if not wait:
            with suppress(OSError):  # the disk may have become read-only; a file without a holder locks nothing
                file.unlink(missing_ok=True)
        lock.release()


@contextmanager
def writing(target: Path, partial: Path | None = None) -> Iterator[None]:
    """Turn errors of the file system into a RunError, and remove the half-written file."""
    try:
        yield
    except BaseException as error:
        if partial is not None:
            with suppress(OSError):  # the first error is raised
                remove(partial)
        if not isinstance(error, OSError):
            raise
        limit = system_limit(error)
        reason = f"{limit[0]}. {limit[1]}" if limit else (error.strerror or str(error))
        raise RunError(f"cannot write {str(target)!r}: {reason}. Complete files are kept.") from None


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
