"""manifest.json: the content of an exported folder, and the proof that it is the tuned model."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from ftengine.run.record import Part, Record

MANIFEST = "manifest.json"


class Proof(Part):
    """Answers of the artifact in the program of its format, compared with those of the tuned model and its base.

    Args:
        runtime: the program and its version.
        questions: number of rows of the split `split` that were answered.
        decision: "tuned", or "undecided": within the noise of the tuned model, but too few rows to exclude its base.
        from_tuned, from_base: mean distance of log-probabilities per token of the tuned model's greedy answers; for a
            task without answers, mean relative distance of raw outputs.
        closer: from_base - from_tuned, paired by row; `low` and `high` are its 95 % interval, `p` tests no difference.
        noise: the largest mean distance that rounding to the format's numbers explains; `furthest` is that of a
            single row.
        same_answers: number of rows with the same greedy answer; None for a task without answers.
        needed: number of rows with which the test would decide; None if it decides already, or if unknown.
    """

    runtime: str
    split: str
    questions: int
    decision: Literal["tuned", "undecided"]
    from_tuned: float
    from_base: float
    closer: float
    low: float | None
    high: float | None
    p: float | None
    noise: float
    furthest: float
    same_answers: int | None
    needed: int | None


class Manifest(Record):
    """The record of an `ftengine export`.

    Args:
        format: the exporter and its options; `facts` are its facts about the artifact.
        run, base, strategy: the run's folder, its base's source, its strategy.
        trained: hash of the trained part's files.
        proof: None if there is none; `unproven` is then the reason.
        cannot_tell: whether there is no proof because the other program timed out or failed.
        files: SHA-256 of each file by its path in the folder.
    """

    file: ClassVar[str] = MANIFEST
    ftengine: str | None
    format: dict[str, Any]
    facts: dict[str, Any]
    run: str
    base: str
    strategy: str
    trained: str
    proof: Proof | None
    unproven: str
    cannot_tell: bool = False
    files: dict[str, str] = Field(default_factory=dict)
