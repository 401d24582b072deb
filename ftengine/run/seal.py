"""Hashes by which a run's files are known again: those of its trained part, and the seal on its records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from ftengine.api import Listener
from ftengine.errors import RunError
from ftengine.identity import file_hash
from ftengine.run.directory import SIDECAR, TRAINED, RunDirectory
from ftengine.run.record import Record
from ftengine.run.records import (
    AuditResult,
    Environment,
    EvaluationResult,
    Examples,
    TrainedPart,
    TrainingResult,
    Verdict,
)

PREDICTIONS, MISSING = "predictions", "is missing"
RECORDS = (AuditResult, Environment, TrainingResult, EvaluationResult, Examples, Verdict)
SEALED = ("recipe.yaml", *(one.file for one in RECORDS), "metrics.jsonl", f"{PREDICTIONS}/*", f"{TRAINED}/{SIDECAR}")
"""What a run is read from. The page is only shown, and a checkpoint has hashes of its own."""


class Seal(Record):
    """seal.json: the SHA-256 of each record of a finished run, by its path in the run's folder."""

    file: ClassVar[str] = "seal.json"
    sha256: dict[str, str]


def seal(run: RunDirectory) -> None:
    """Write the hashes of a finished run's records (RunError: the file cannot be written)."""
    files = sorted(file for pattern in SEALED for file in run.path.glob(pattern))
    Seal(sha256={file.relative_to(run.path).as_posix(): file_hash(file) for file in files}).write(run)


def unseal(run: RunDirectory) -> None:
    """Take the seal off a run that is written again (RunError: the file cannot be removed)."""
    run.remove(run.path / Seal.file)


def is_sealed(run: RunDirectory) -> bool:
    """Say whether a run has a seal; one that is not finished, and those of older versions, have none."""
    return (run.path / Seal.file).is_file()


@contextmanager
def resealed(run: RunDirectory) -> Iterator[None]:
    """Take the seal off while ftengine itself writes records of a run, whose seal was looked at before."""
    sealed = is_sealed(run)
    unseal(run)
    try:
        yield
    finally:
        if sealed:
            with suppress(RunError):  # a run without a seal opens as well; what failed before is reported
                seal(run)


def changes_since_seal(run: RunDirectory) -> list[str]:
    """Return the records that are no longer as they were when the run finished, as "NAME has changed".

    Tables of predictions may be removed: whatever reads them says so.
    """
    changes = _changes(run.path, Seal.read(run).sha256) if is_sealed(run) else []
    return [one for one in changes if not (one.startswith(f"{PREDICTIONS}/") and one.endswith(MISSING))]


def report_state(run: RunDirectory, facts: TrainedPart, listener: Listener) -> None:
    """Report what a run that is opened has unlike others: a trained part that is not checked, records that changed.

    Raises:
        RunError: the trained part failed its check.
    """
    if facts.check == "failed":
        raise RunError(f"the trained part of run {str(run.path)!r} failed its check: {facts.unchecked}")
    if facts.check == "pending":
        listener.message(
            f"the trained part of run {str(run.path)!r} is not checked: {facts.unchecked.rstrip('.')}; "
            "`ftengine train RECIPE --resume` checks it, without training again"
        )
    for change in changes_since_seal(run):
        listener.message(f"run {str(run.path)!r} is not as it was when it finished: {change}")


def require_sealed(run: RunDirectory) -> None:
    """Refuse a run whose records are no longer as they were when it finished (RunError names the first)."""
    if changed := changes_since_seal(run):
        raise RunError(
            f"run {str(run.path)!r} is not as it was when it finished: {changed[0]}. Restore it from a copy; "
            f"without {Seal.file}, its records are taken as they are."
        )


def require_saved(folder: Path) -> None:
    """Refuse a trained part whose files, or facts, are no longer as they were when it was saved and checked (RunError).

    Other folders, and trained parts of versions that kept no hashes, are taken as they are.
    """
    if not (folder / SIDECAR).is_file():
        return
    changed, run = _changes(folder, TrainedPart.read(RunDirectory(folder)).files), RunDirectory(folder.parent)
    name = f"{TRAINED}/{SIDECAR}"
    if not changed and folder.name == TRAINED and is_sealed(run):
        changed = _changes(run.path, {key: one for key, one in Seal.read(run).sha256.items() if key == name})
    if changed:
        raise RunError(
            f"the trained part {str(folder)!r} is not as it was saved and checked: {changed[0]}. Restore it from "
            "a copy, or train again."
        )


def _changes(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    found = []
    for name, expected in hashes.items():
        try:
            now = file_hash(folder / name)
        except FileNotFoundError:
            found.append(f"{name} {MISSING}")
        except OSError as error:
            raise RunError(f"{str(folder / name)!r} cannot be read: {error.strerror or error}.") from None
        else:
            found += [] if now == expected else [f"{name} has changed"]
    return found
