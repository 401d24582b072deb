"""One finding of the verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["alarm", "note", "good"]


@dataclass(frozen=True)
class Finding:
    """One thing that a reader of the run must know.

    Args:
        kind: what it is about: "quality", "over-fitting", "slices", …; the report's sections carry these names.
        level: "alarm" (do not use the model before this is looked at), "note" (know it) or "good".
        text: one or two sentences in plain words, with the figures.
        figures: the numbers that the text rests on, as JSON values.
    """

    kind: str
    level: Level
    text: str
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
