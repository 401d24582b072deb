"""manifest.json: what an exported folder holds, and how it is known to be the tuned model."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from ftengine.run.record import Part, Record

MANIFEST = "manifest.json"


class Proof(Part):
    """The artifact, asked by its format's own program, beside the tuned model and its base.

    Args:
        runtime: the program and its version.
        questions: held-out rows that were asked, of the split `split`.
        decision: "tuned", or "undecided": within the noise of the tuned model, but too few rows tell it from its base.
        from_tuned, from_base: mean distance of the log-probabilities of a token of the tuned model's greedy answers;
            where there are no answers, of raw outputs, by their size.
        closer: from_base - from_tuned, paired by row; `low` and `high` its 95 % interval, `p` of no difference.
        noise: the largest distance from the tuned model that rounding to the format's numbers explains, in the mean;
            `furthest` is that of a single row.
        same_answers: rows of the same greedy answer; None where there are no answers.
        needed: rows with which the test would decide; None where it does, or that is not known.
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
    """What `ftengine export` wrote.

    Args:
        format: the exporter and its options; `facts` is what it says of the artifact.
        run, base, strategy: the run's folder, its base's source, its strategy.
        trained: hash of the trained part's files.
        proof: None where there is none, and `unproven` says why.
        cannot_tell: whether there is none as the program that was asked timed out or ended.
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
