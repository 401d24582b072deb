"""Audit of several sources: how much of each an epoch uses, and how much is held out."""

from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Display, Finding, Table
from ftengine.text import counted, percent
from ftengine_builtins.audits.counting import split_name

OFTEN = 4
"""Times an epoch has each example of a source, from which it is an alarm: as many epochs on the same rows."""

SHARES = "Each source has its share of what is held out, as far as labels and rows that belong together allow."


class SeveralSources(Audit):
    """Reports for several sources of training their rows, repetitions in an epoch, and held-out rows."""

    name = "several-sources"

    def examine(self, data: AuditedData) -> Iterator[Finding | Display]:
        by_split = {split: facts["sources"] for split, facts in data.encoded.items() if facts.get("sources")}
        sources = by_split.pop("train", ())
        for source in sources:
            times = source["an_epoch"] / source["examples"]
            if times == 1:
                continue
            taken = f"{counted(source['an_epoch'], 'example')} of {source['source']} (weight {source['weight']:g})"
            text = f"An epoch takes {taken}, which has {source['examples']:,}: " + (
                f"each comes {times:.2g} times on average."
                if times > 1
                else f"{percent(times)} of them; the next epoch continues after them."
            )
            level = "alarm" if times >= OFTEN else "note"
            yield Finding(kind="data", level=level, text=text, figures={"source": source["source"], "times": times})
        for split, held in by_split.items():
            for source in (source for source in held if not source["examples"]):
                text = (
                    f"No {split_name(split)} row is of {source['source']}: the model is not measured on such "
                    f"rows. Hold out more (data.{split}), or give a file of its own."
                )
                yield Finding(kind="data", level="note", text=text, figures={"source": source["source"], split: 0})
        if sources:
            columns = ("source", "rows", "examples", "an epoch", "tokens", "trained tokens")
            keys = ("source", "rows", "examples", "an_epoch", "tokens", "trained_tokens")
            others = [[source["examples"] for source in held] for held in by_split.values()]
            rows = [(*(source[key] for key in keys), *held) for source, *held in zip(sources, *others, strict=True)]
            columns = (*columns, *(f"{split} examples" for split in by_split))
            shares = data.facts["sizes"] and data.settings["split"]["by"] != "time"
            caption = SHARES if shares else ""
            yield Table(title="Sources of training", columns=columns, rows=tuple(rows), caption=caption)
