"""Audit `leaks`."""

from __future__ import annotations

from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Finding

ALARM = 0.01
"""Share of a held-out split that is nearly in training, from which it is an alarm with data.leaks: warn, as fewer rows
move no figure by more than a point. A row that is there word for word is one always, and so is any where the recipe
does not say what to do with leaks."""


class Leaks(Audit):
    """Rows on two sides of the split, and held-out rows that are no later than training."""

    name = "leaks"

    def look(self, data: AuditedData) -> Iterator[Finding]:
        """Yield a finding for each pair of splits that share rows, and for each split that overlaps in time."""
        for leak in data.facts["leaks"]:
            known, held = leak["between"]
            exact, near, groups = leak["count"], leak["near"], leak.get("groups", 0)
            open_ = known == "train" and data.settings["leaks"] != "drop"
            accepted = data.settings["leaks"] == "warn"  # the user knows of them
            serious = open_ and (exact + groups or near > (ALARM * len(data.splits[held]) if accepted else 0))
            says = "nothing about new data" if exact + near else "little about new ones"
            yield Finding(
                kind="data",
                level="alarm" if serious else "note",
                text=f"{leak['text']}{f'; figures on them say {says}' if open_ else ''}.",
                figures={key: leak[key] for key in ("between", "count", "near", "dropped")} | {"groups": groups},
                places=tuple(leak["places"]),
            )
        if len(data.splits) > 1 and not any(leak["between"][0] == "train" for leak in data.facts["leaks"]):
            yield Finding(kind="data", level="good", text="No held-out row is in training.")
        if dropped := data.facts["dropped"]:
            of = len(data.splits["train"]) + dropped
            are, also = ("is", "it is") if dropped == 1 else ("are", "they are")
            text = f"{dropped:,} of {of:,} training rows {are} left out, as {also} also held out (data.leaks: drop)."
            yield Finding(kind="data", level="note", text=text, figures={"dropped": dropped, "rows": of})
        for late in data.facts["overlap"]:
            text = (
                f"{late['rows']:,} of {len(data.splits[late['split']]):,} {late['split']} rows are no later than the "
                f"last of training: {late['split']} begins at {late['begins']} ({late['places'][0]}), training ends at "
                f"{late['ends']} ({late['places'][1]}); figures on it say less about the future."
            )
            yield Finding(kind="data", level="note", text=text, figures=dict(late), places=tuple(late["places"]))
