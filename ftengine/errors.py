"""The errors of ftengine; every message states the fault, the value, what is allowed, and what to do."""

from __future__ import annotations

import difflib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "BaseMismatch",
    "DataError",
    "ExportDiffers",
    "FtengineError",
    "InputError",
    "MergeChangedOutputs",
    "NoMatch",
    "NoRuntime",
    "NotExportable",
    "NotMergeable",
    "PluginError",
    "ProcessLost",
    "ProgramFailed",
    "RecipeError",
    "RefusedRows",
    "RunError",
    "SavedPartDiffers",
    "SourceError",
    "TrainingError",
    "UnknownName",
    "column_names",
    "did_you_mean",
    "is_panic",
    "json_of_file",
    "load_yaml",
    "naming",
    "near_file",
    "shown",
    "system_limit",
    "text_of_file",
]


class FtengineError(Exception):
    """Base of every error that ftengine raises on purpose."""

    exit_code = 1


class InputError(FtengineError):
    """The user's input is wrong: a recipe, a data file, an option. The command exits with 2."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe has an unknown key, a value out of range, or a contradiction."""


class DataError(InputError):
    """A data file is missing, malformed, or does not hold what the task needs."""


class SourceError(InputError):
    """A model source cannot be found or read."""


class UnknownName(InputError):
    """A component name that no installed plugin offers."""


class NoMatch(InputError):
    """A pattern matches no module of the model."""


class PluginError(FtengineError):
    """A plugin cannot be loaded, or two plugins claim one name."""


class RunError(InputError):
    """A run directory is missing, incomplete, occupied, or was made by something else."""


class BaseMismatch(RunError):
    """A trained part meets a base model, tokenizer or shape that it was not trained on."""


class NotMergeable(InputError):
    """The strategy cannot fold its parameters into the base weights."""


class MergeChangedOutputs(FtengineError):
    """The merged model's outputs differ from the unmerged ones by more than the dtype explains."""


class NotExportable(InputError):
    """The format cannot store what was trained."""


class NoRuntime(InputError):
    """The program that runs a format is not installed."""


class ProgramFailed(FtengineError):
    """The program that opened an exported file timed out or crashed, so the file could not be checked."""


class ExportDiffers(FtengineError):
    """The exported files do not answer as the tuned model; they were removed."""


class SavedPartDiffers(FtengineError):
    """A trained part cannot be saved, or opened on a fresh base, or gives another model than the tuned one."""


class ProcessLost(FtengineError):
    """One of the processes of a distributed run has ended or no longer answers."""


class TrainingError(FtengineError):
    """Training cannot continue: a loss, gradient or output is not finite, or nothing is trainable."""


def text_of_file(file: Path) -> str:
    """Read a UTF-8 text file (OSError, ValueError: it cannot be read, or is a pipe or device)."""
    if file.exists() and not file.is_file():
        raise OSError(f"it is {'a folder' if file.is_dir() else 'a pipe or a device'}, not a file")
    return file.read_text(encoding="utf-8")


def json_of_file(file: Path) -> Any:
    """Read a JSON file from any source (OSError, ValueError: it cannot be read)."""
    try:
        return json.loads(text_of_file(file))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def load_yaml(text: str) -> Any:
    """Return the content of YAML text (YAMLError: it is invalid, also by a date of month 13 or endless nesting)."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (ValueError, OverflowError, RecursionError, AttributeError) as error:  # the last: `!!timestamp later`
        raise yaml.YAMLError("nested too deeply" if isinstance(error, RecursionError) else str(error)) from None


_LIMITS = {
    errno.ENOSPC: ("the disk is full", "Make room"),
    errno.EDQUOT: ("the disk quota is used up", "Make room"),
    errno.EFBIG: ("a file would be larger than the limit on file sizes allows", "Raise it (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "Make it writable"),
    errno.EMFILE: ("too many files are open in this process", "Raise the limit (ulimit -n)"),
    errno.ENFILE: ("too many files are open on this machine", "Close some"),
}


def system_limit(error: BaseException) -> tuple[str, str] | None:
    """Return which limit of the system an error is about, and what to do; None for any other error."""
    return _LIMITS.get(error.errno or 0) if isinstance(error, OSError) else None


def is_panic(error: BaseException) -> bool:
    """Return whether an error is the panic of a Rust library, which is not a subclass of Exception."""
    return type(error).__module__ == "pyo3_runtime"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" with the most similar known word, or "" if none is similar."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def near_file(path: Path, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" with the most similar file name in a path's folder, or "" if none is similar.

    Names are compared with and without their suffixes; an equal suffix alone does not make two names similar.
    """

    def stem(file: str) -> str:
        return os.path.splitext(file)[0]

    near = difflib.get_close_matches(path.name, [x for x in known if did_you_mean(stem(path.name), [stem(x)])], n=1)
    return f" Did you mean {str(path.parent / near[0])!r}?" if near else ""


def shown(value: Any) -> str:
    """Return a value as an error shows it: its repr, shortened to 60 characters; "missing" for None."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


MOST_COLUMNS, MOST_PLACES = 20, 5
"""Columns, and places of rows, that a message names."""
MOST_REFUSED = 10_000
"""Rows that are counted: a file of which no row can be used is no such file."""


def column_names(columns: Sequence[str]) -> str:
    """Return columns as a message shows them, the first 20 and how many more: "a, b, … and 280 more"."""
    more = len(columns) - MOST_COLUMNS
    return ", ".join(columns[:MOST_COLUMNS]) + (f", … and {more:,} more" if more > 0 else "")


@dataclass
class RefusedRows:
    """Collects unusable rows for one error message: the first reason, the number of rows, and their places."""

    reason: str = ""
    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str, reason: str) -> None:
        """Add a row; `reason` is a whole sentence, of which the message shows the first row's."""
        self.reason = self.reason or reason
        self.count += 1
        if len(self.places) < MOST_PLACES:
            self.places.append(place)

    @property
    def enough(self) -> bool:
        """Whether counting can stop."""
        return self.count >= MOST_REFUSED

    def error(self, repair: str = "") -> DataError:
        """Return the error; `repair` is a sentence on what to do, with a leading space."""
        count = f"{self.count:,}{' or more' if self.enough else ''}"
        first = ": " if self.count == len(self.places) else ", the first at "
        more = "" if self.count == 1 else f" {count} rows cannot be used{first}{', '.join(self.places)}."
        return DataError(f"{self.reason}{more}{repair}")


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Within the block, prefix errors with the run, file or recipe key that they are about; "" adds nothing."""
    try:
        yield
    except FtengineError as error:
        if not label:
            raise
        raise type(error)(f"{label}: {error}") from None
