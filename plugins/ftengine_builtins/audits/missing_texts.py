"""Audit `missing-texts`."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, View
from ftengine.text import listed, quoted
from ftengine_builtins.audits.counting import SHOWN_PLACES, counted, share_within
from ftengine_builtins.tasks.class_labels import MISSING

TEXTS = MISSING | {
    "...", "…", "--", "---", "n.a", "n\\a", "#value!", "#ref!", "#name?", "#error!", "xxx",
    "todo", "tbd", "tba", "placeholder", "lorem ipsum", "text", "test",
    "empty", "empty string", "blank", "void", "undefined", "unknown", "untitled", "deleted", "removed", "redacted",
    "not available", "not applicable", "no text", "no data", "no content",
}  # fmt: skip
"""What stands where there is no text, in small letters and without brackets around it."""
ALARM = 0.05
"""Share of the rows of all splits, at the interval's near end, from which it is an alarm."""
SAME, SAME_LABEL, LONGEST = 0.2, 0.9, 200
"""Share of the rows that have one text of so many characters at most, from which that is taken for a placeholder too,
if it has several labels: at most so much of its rows are of one."""
SHOWN = 3


class MissingTexts(Audit):
    """Texts that stand for a missing one, such as N/A; and one text in a fifth of the rows, whatever the label."""

    name = "missing-texts"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        first = next(iter(data.splits["train"]), None)
        if first is not None and first.inputs and not _inputs(first):
            return  # of images, each of which would be decoded
        texts = _same_text(data) | TEXTS
        found: dict[str, list[int]] = {}
        spelt = Counter[str]()
        for split, rows in data.splits.items():
            for i, view in enumerate(rows):
                if names := [text for text in _inputs(view) if _plain(text) in texts]:
                    found.setdefault(split, []).append(i)
                    spelt[names[0].strip()] += 1
        if not found:
            return
        counts, of = (
            {name: len(rows) for name, rows in found.items()},
            {name: len(x) for name, x in data.splits.items()},
        )
        shown = listed([quoted(text) for text, _ in spelt.most_common(SHOWN)], "or")
        places = [data.splits[split].where(row) for split, rows in found.items() for row in rows[:SHOWN_PLACES]]
        what = f"have {shown} in the place of a text"
        lead = f"leave out rows without a text: {counted(counts, of, what)}"
        level = "alarm" if share_within(sum(counts.values()), sum(of.values()))[0] >= ALARM else "note"
        text = f"{lead[:1].upper()}{lead[1:]} (e.g. {places[0]}), which tells the model nothing."
        yield Finding(
            kind="data",
            level=level,
            text=text,
            brief=lead,
            explains=("quality", "learning", "labels", "classes", "over-fitting"),
            figures={"placeholders": counts, "rows": of, "texts": dict(spelt.most_common(SHOWN))},
            places=tuple(places[:SHOWN_PLACES]),
        )


def is_placeholder(text: str) -> bool:
    """Say whether a text stands for a missing one."""
    return _plain(text) in TEXTS


def _inputs(view: View) -> list[str]:
    return [text for text in view.inputs if isinstance(text, str)]


def _plain(text: str) -> str:
    """Return a text as `TEXTS` has it."""
    text = text[: LONGEST + 2].strip().casefold()
    return text.strip("<>[](){}\"'*").strip() or text


def _same_text(data: AuditedData) -> frozenset[str]:
    """Return the text that a fifth of the rows have under several labels; of rows with labels alone."""
    targets = np.concatenate([data.targets[name] for name in data.splits])
    numbers = np.concatenate([(data.same_words or data.distinct)[name] for name in data.splits])
    if not targets.any() or not len(numbers):
        return frozenset()
    most = np.bincount(numbers).argmax()
    having = np.flatnonzero(numbers == most)
    of_label = np.unique(targets[having], return_counts=True)[1]
    if share_within(len(having), len(numbers))[0] < SAME or of_label.max() > SAME_LABEL * len(having):
        return frozenset()
    view = next(islice(chain(*data.splits.values()), int(having[0]), None))
    return frozenset(_plain(text) for text in _inputs(view) if len(view.inputs) == 1 and len(text) <= LONGEST)
