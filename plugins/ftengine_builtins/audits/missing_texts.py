"""Audit `missing-texts`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, View
from ftengine.text import capitalized, listed, quoted
from ftengine_builtins.audits.counting import found_rows, share_within
from ftengine_builtins.tasks.class_labels import MISSING

WORDS = frozenset({"text", "test", "unknown", "empty", "blank", "removed", "deleted", "void", "none"})
"""What also is a word that somebody may have written: a placeholder in brackets ("[deleted]"), or where OFTEN."""
TEXTS = MISSING | WORDS | {
    "...", "…", "--", "---", "n.a", "n\\a", "#value!", "#ref!", "#name?", "#error!", "xxx",
    "todo", "tbd", "tba", "placeholder", "lorem ipsum", "empty string", "undefined", "untitled", "redacted",
    "not available", "not applicable", "no text", "no data", "no content",
}  # fmt: skip
"""What stands where there is no text, in small letters and without brackets around it."""
ALARM = 0.05
"""Share of the rows of all splits, at the interval's near end, from which it is an alarm."""
OFTEN, SAME, SAME_LABEL, LONGEST = 0.05, 0.2, 0.9, 200
"""Shares of the rows, at the interval's near end, from which one of WORDS, and any text of so many characters at most,
is taken for a placeholder, if it has several labels: at most so much of its rows are of one."""
SHOWN = 3
BRACKETS = "<[({"


class MissingTexts(Audit):
    """Finds placeholders for missing texts, such as N/A, and one text or image that a fifth of the rows have."""

    name = "missing-texts"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        first = next(iter(data.splits["train"]), None)
        if first is not None and first.inputs and not _inputs(first):
            yield from _same_image(data)  # each image would be decoded, so their numbers are compared
            return
        same, total = _same_text(data), sum(map(len, data.splits.values()))
        texts, uncertain = TEXTS | same, WORDS - same
        found, words = list[tuple[str, int, str, str]](), dict[str, list[int]]()
        for split, rows in data.splits.items():
            for i, view in enumerate(rows):
                asked = _asked(view)
                if asked and all(isinstance(text, str) and _plain(text) in texts for text in asked):
                    plain, text = _plain(asked[0]), asked[0].strip()
                    if word := plain if plain in uncertain and text[0] not in BRACKETS else "":
                        words.setdefault(word, []).append(int(data.targets[split][i]))
                    found.append((split, i, text, word))
        words = {word: of for word, of in words.items() if _under_several_labels(np.array(of), total, OFTEN)}
        by_split, spelt = dict[str, list[int]](), Counter[str]()
        for split, i, text, word in found:
            if not word or word in words:
                by_split.setdefault(split, []).append(i)
                spelt[text] += 1
        if by_split:
            yield _finding(data, by_split, dict(spelt.most_common(SHOWN)))


def _finding(data: AuditedData, by_split: dict[str, list[int]], texts: dict[str, int], what: str = "text") -> Finding:
    shown = listed([*map(quoted, texts)], "or") or f"one and the same {what}, under several labels,"
    found = found_rows(data, by_split, f"have {shown} in the place of {'an' if what == 'image' else 'a'} {what}")
    lead = f"leave out rows without {'an' if what == 'image' else 'a'} {what}: {found.text}"
    return Finding(
        kind="data",
        level="alarm" if found.least >= ALARM else "note",
        text=f"{capitalized(lead)} (e.g. {found.places[0]}), which tells the model nothing.",
        brief=lead,
        explains=("quality", "learning", "rows", "labels", "classes", "over-fitting"),
        figures={"placeholders": found.counts, "rows": {x: len(y) for x, y in data.splits.items()}, "texts": texts},
        places=found.places,
    )


def is_placeholder(text: str) -> bool:
    """Return whether a text is a placeholder for a missing one."""
    return _plain(text) in TEXTS


def _same_image(data: AuditedData) -> Iterator[Finding]:
    """Find an image that many rows have under several labels: a picture that says that there is none."""
    if (most := _most_frequent(data)) is None:
        return
    by_split = {split: np.flatnonzero(of == most).tolist() for split, of in data.distinct.items()}
    yield _finding(data, {split: rows for split, rows in by_split.items() if rows}, {}, "image")


def _inputs(view: View) -> list[str]:
    return [text for text in view.inputs if isinstance(text, str)]


def _asked(view: View) -> Sequence[Any]:
    """Return the texts that must all be placeholders: for a conversation its only question, none if it has several."""
    if view.classes or len(view.inputs) == 1 or not isinstance(view.target, list):
        return view.inputs
    return view.inputs[-1:] if len(view.target) == 1 else ()


def _plain(text: str) -> str:
    """Return a text as `TEXTS` has it."""
    text = text[: LONGEST + 2].strip().casefold()
    return text.strip(f"{BRACKETS}>])}}\"'*").strip() or text


def _most_frequent(data: AuditedData, numbers_of: Mapping[str, np.ndarray] | None = None) -> int | None:
    """Return the number of the input that a fifth of the labelled rows have under several labels."""
    targets = np.concatenate([data.targets[name] for name in data.splits])
    numbers = np.concatenate([(numbers_of or data.distinct)[name] for name in data.splits])
    if not targets.any() or not len(numbers):
        return None
    most = int(np.bincount(numbers).argmax())
    return most if _under_several_labels(targets[numbers == most], len(numbers), SAME) else None


def _same_text(data: AuditedData) -> frozenset[str]:
    """Return the text that a fifth of the labelled rows have under several labels."""
    most = _most_frequent(data, data.same_words or data.distinct)
    if most is None:
        return frozenset()
    having = np.flatnonzero(np.concatenate([(data.same_words or data.distinct)[name] for name in data.splits]) == most)
    view = next(islice(chain(*data.splits.values()), int(having[0]), None))
    return frozenset(_plain(text) for text in _inputs(view) if len(view.inputs) == 1 and len(text) <= LONGEST)


def _under_several_labels(targets: np.ndarray, total: int, share: float) -> bool:
    """Return whether rows with these targets are a large share of all, and spread over several labels."""
    return share_within(len(targets), total)[0] >= share and bool(
        np.unique(targets, return_counts=True)[1].max() <= SAME_LABEL * len(targets)
    )
