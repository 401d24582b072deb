"""How long examples are, against what the model can read."""

from __future__ import annotations

from typing import Any

from ftengine.data.encoding import EncodedSplit


def length_report(split: EncodedSplit) -> dict[str, Any]:
    """Return the distribution of an encoded split's lengths.

    Returns:
        "percentiles" of what the model reads of an example, in the task's unit (an example that is cut counts as
        long as it is after that; "100" is the longest), "uncut" (the same before cutting; None where the task does not
        tell), "limit" (of the model; None where it has none) and
        "truncated" (examples that were cut).
    """
    return {
        "percentiles": {**split.length_percentiles(), "100": int(split.lengths.max())},
        "uncut": split.uncut,
        "limit": split.max_length,
        "truncated": split.truncated,
    }
