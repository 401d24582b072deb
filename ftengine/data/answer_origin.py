"""A record beside a file of answers of what produced it, which `--resume` compares before it continues."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ftengine.api import Task
from ftengine.data.encoding import content_of
from ftengine.data.rows import DataRows
from ftengine.errors import RunError, shown
from ftengine.identity.base import changes
from ftengine.run.directory import RunDirectory
from ftengine.run.record import Record, flat, validated

SUFFIX = ".origin.json"
"""The suffix that is added to the name of the answers' file."""


class AnswerOrigin(Record):
    """All that answers depend on.

    Args:
        ftengine, run, source: version, folder and input file, for people to read; they may differ.
        model: "tuned" or "base".
        trained: hash of the trained part's files, which include labels and task; "" if the base model answers.
        base: fingerprint of the base model.
        settings: how the model is loaded, the precision, and the options given to the task; if the base model answers,
            also the seed, the task and its labels.
        rows: number of input rows; `content` is a hash of them and of the files that they name.
    """

    file: ClassVar[str] = SUFFIX
    ftengine: str | None
    run: str
    source: str
    model: str
    trained: str
    base: dict[str, Any]
    settings: dict[str, Any]
    rows: int
    content: str

    @classmethod
    def of(cls, answering: Mapping[str, Any], source: str | Path, rows: DataRows, task: Task) -> AnswerOrigin:
        """Return the origin of answers to some rows; `answering` comes from `Run.answering`."""
        return cls(**answering, source=str(source), rows=len(rows), content=content_of(rows, task))

    @staticmethod
    def beside(output: Path) -> Path:
        """Return the path of the record of a file of answers."""
        return output.with_name(output.name + SUFFIX)

    def write_beside(self, output: Path) -> None:
        """Write the record atomically (RunError: it cannot be written)."""
        RunDirectory(output.parent).write_json(self.beside(output).name, self.to_json())

    def require_same(self, output: Path) -> None:
        """Raise RunError, with the differences, if the answers have another origin."""
        file = self.beside(output)
        if not file.is_file():
            raise RunError(
                f"output {str(output)!r} cannot be continued: {file.name!r}, the record of its origin, is missing "
                "beside it. Restore it, or name another output."
            )
        if differing := self._differences(AnswerOrigin.read_file(file)):
            raise RunError(
                f"output {str(output)!r} cannot be continued, as it was begun differently: {'; '.join(differing)}. "
                "Repeat the command that began it, or name another output; the file was not changed."
            )

    @classmethod
    def read_file(cls, file: Path) -> AnswerOrigin:
        """Read the file (RunError: it is damaged)."""
        return validated(cls, RunDirectory(file.parent).read_json(file.name), file)

    def _differences(self, begun: AnswerOrigin) -> list[str]:
        differences = []
        if begun.model != self.model:
            differences.append(f"the {begun.model} model answered before, and the {self.model} model would now")
        differences += [f"of the base model, {what} differ" for what in changes(begun.base, self.base)]
        if begun.trained != self.trained and begun.model == self.model:
            same = f"run {begun.run!r} has changed (its trained part differs)"
            differences.append(same if begun.run == self.run else f"it was run {begun.run!r} and is {self.run!r}")
        was, now = ({key: x for key, x in flat(origin.settings).items() if x != {}} for origin in (begun, self))
        # If the run is another one, its settings need no mention.
        keys = [key for key in {**was, **now} if was.get(key) != now.get(key) and begun.trained == self.trained]
        differences += [f"{key} was {_setting(was, key)} and is {_setting(now, key)}" for key in keys]
        if (begun.rows, begun.content) != (self.rows, self.content):
            count = f"{begun.rows:,} rows, now {self.rows:,}" if begun.rows != self.rows else "its rows differ"
            named = "" if begun.source == self.source else f"it was {begun.source!r} and is {self.source!r}; "
            differences.append(f"the input has changed ({named}{count})")
        return differences


def _setting(settings: Mapping[str, Any], key: str) -> str:
    return shown(settings[key]) if key in settings else "not given"
