"""What a run writes down, a frozen model for each file."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from ftengine.api import Display, Finding
from ftengine.api.personal import redact_json
from ftengine.errors import RunError
from ftengine.run.directory import RunDirectory


class Skipped(BaseModel):
    """Malformed rows that were left out: how many, and place and reason of the first."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    count: int
    first: tuple[str, ...]


class SplitCounts(BaseModel):
    """The rows of one split.

    Args:
        source: the file, or whatever else they were read from.
        rows: all rows.
        distinct: rows without the copies.
        duplicates: the copies.
        near_duplicates: distinct rows that nearly repeat another of the split.
        skipped: malformed rows that were left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str
    rows: int
    distinct: int
    duplicates: int
    near_duplicates: int
    skipped: Skipped


class AuditResult(BaseModel):
    """audit.json: what a run's data holds, and what is wrong with it.

    Args:
        splits: counts of each split.
        split: how rows were divided, as the recipe says.
        encoded: for each split what the model gets: numbers of examples and tokens, percentiles of length, and a hash
            of the content, by which other data are noticed.
        findings: what the audits found, alarms first.
        displays: tables and charts of the audits.
        facts: what reading and dividing found, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    splits: dict[str, SplitCounts]
    split: dict[str, Any]
    encoded: dict[str, dict[str, Any]]
    findings: tuple[Finding, ...]
    displays: tuple[Display, ...]
    facts: dict[str, Any]

    @property
    def contents(self) -> dict[str, str]:
        """Hash of the content of each split."""
        return {name: counts["content"] for name, counts in self.encoded.items()}

    def write(self, run: RunDirectory) -> None:
        """Write audit.json, with likely personal data redacted."""
        run.write_json("audit.json", redact_json(self.model_dump(mode="json")))

    @classmethod
    def read(cls, run: RunDirectory) -> AuditResult:
        """Read audit.json.

        Raises:
            RunError: it is missing, damaged, or of another version of ftengine.
        """
        try:
            return cls.model_validate(run.read_json("audit.json"))
        except ValueError:
            raise RunError(f"{str(run.path / 'audit.json')!r} was written by another version of ftengine.") from None
