"""Audit `unread-keys`."""

from __future__ import annotations

from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Finding

INSTRUCTIONS = frozenset(
    {"weight", "weights", "loss_weight", "sample_weight", "loss", "mask", "loss_mask", "train", "trainable", "tools"}
)
"""Keys by which other tools are told what to train on, how much, or with which functions."""


class UnreadKeys(Audit):
    """Columns and keys of messages that look like an instruction for training, and that nothing reads."""

    name = "unread-keys"

    def look(self, data: AuditedData) -> Iterator[Finding]:
        """Yield one finding for all of them."""
        unread = data.encoded.get("train", {}).get("unread", {})
        found = {key: place for key, place in unread.items() if key.rpartition(".")[2].lower() in INSTRUCTIONS}
        if not found:
            return
        named = [
            f"`{name}` in `{column}`" if column else f"column `{name}`"
            for column, _, name in (key.rpartition(".") for key in found)
        ]
        looks = "looks like an instruction" if len(found) == 1 else "look like instructions"
        text = f"{', '.join(named)} {looks} for training, but nothing reads {'it' if len(found) == 1 else 'them'}"
        places = tuple(found.values())
        yield Finding(
            kind="data",
            level="note",
            text=f"{text[0].upper()}{text[1:]} (e.g. {places[0]}): rows are trained on as if it were not there.",
            figures={"keys": sorted(found)},
            places=places,
        )
