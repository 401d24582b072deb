"""Hashes that show changes of a run's files: those of its trained part, and the seal of its records."""

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
SEALED = (
    "recipe.yaml",
    *(record.file for record in RECORDS),
    "metrics.jsonl",
    f"{PREDICTIONS}/*",
    f"{TRAINED}/{SIDECAR}",
)
"""Files that ftengine reads from a run. The report is not read, and checkpoints have their own hashes."""


class Seal(Record):
    """seal.json: the SHA-256 of each record of a finished run, by its path in the run's folder."""

    file: ClassVar[str] = "seal.json"
    sha256: dict[str, str]


def seal(run: RunDirectory) -> None:
    """Write the hashes of a finished run's records (RunError: the file cannot be written)."""
    files = sorted(file for pattern in SEALED for file in run.path.glob(pattern))
    Seal(sha256={file.relative_to(run.path).as_posix(): file_hash(file) for file in files}).write(run)


def unseal(run: RunDirectory) -> None:
    """Remove the seal of a run that will be written again (RunError: the file cannot be removed)."""
    run.remove(run.path / Seal.file)


def is_sealed(run: RunDirectory) -> bool:
    """Return whether a run has a seal; unfinished runs and those of older versions have none."""
    return (run.path / Seal.file).is_file()


@contextmanager
def resealed(run: RunDirectory) -> Iterator[None]:
    """Remove the seal while ftengine writes records, and seal the run again; check the seal before."""
    sealed = is_sealed(run)
    unseal(run)
    try:
        yield
    finally:
        if sealed:
            with suppress(RunError):  # a run without a seal can be opened; the earlier error is reported
                seal(run)


def changes_since_seal(run: RunDirectory) -> list[str]:
    """Return a text "NAME has changed" or "NAME is missing" for each record that changed since the run finished.

    Removed tables of predictions are not listed; commands that need them report it.
    """
    changes = _changes(run.path, Seal.read(run).sha256) if is_sealed(run) else []
    return [change for change in changes if not (change.startswith(f"{PREDICTIONS}/") and change.endswith(MISSING))]


def report_state(run: RunDirectory, facts: TrainedPart, listener: Listener) -> None:
    """Report an unchecked trained part and changed records of a run that is opened.

    Raises:
        RunError: the trained part failed its check.
    """
    if facts.check == "failed":
        raise RunError(f"the trained part of run {str(run.path)!r} failed its check: {facts.unchecked}")
    if facts.check == "pending":
        listener.message(
            f"the trained part of run {str(run.path)!r} is not checked: {facts.unchecked.rstrip('.')}; "
            "`ftengine train RECIPE --resume` checks it without training again"
        )
    for change in changes_since_seal(run):
        listener.message(f"run {str(run.path)!r} was changed after it finished: {change}")


def require_sealed(run: RunDirectory) -> None:
    """Refuse a run whose records changed after it finished (RunError names the first)."""
    if changed := changes_since_seal(run):
        raise RunError(
            f"run {str(run.path)!r} was changed after it finished: {changed[0]}. Restore the file from a copy, or "
            f"remove {Seal.file} to accept the records as they are."
        )


def require_saved(folder: Path) -> None:
    """Refuse a trained part whose files or facts changed after it was saved and checked (RunError).

    Other folders, and trained parts of older versions without hashes, are accepted.
    """
    if not (folder / SIDECAR).is_file():
        return
    changed, run = _changes(folder, TrainedPart.read(RunDirectory(folder)).files), RunDirectory(folder.parent)
    name = f"{TRAINED}/{SIDECAR}"
    if not changed and folder.name == TRAINED and is_sealed(run):
        changed = _changes(run.path, {key: digest for key, digest in Seal.read(run).sha256.items() if key == name})
    if changed:
        raise RunError(
            f"the trained part {str(folder)!r} was changed after it was saved and checked: {changed[0]}. Restore it "
            "from a copy, or train again."
        )


def _changes(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    changes = []
    for name, expected in hashes.items():
        try:
            now = file_hash(folder / name)
        except FileNotFoundError:
            changes.append(f"{name} {MISSING}")
        except OSError as error:
            raise RunError(f"{str(folder / name)!r} cannot be read: {error.strerror or error}.") from None
        else:
            changes += [] if now == expected else [f"{name} has changed"]
    return changes
