"""What is wrong with the data although it can be read, counted and said in words.

Rows are read as a stream; of each, only a few numbers are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ftengine.api import Task
from ftengine.data.distinct import Units
from ftengine.data.labels import LabelCount, alike_warnings, find_contradictions, label_report, label_warnings
from ftengine.data.languages import CHARACTERS, SAMPLE, language_of, long_enough, minorities
from ftengine.data.leaks import describe
from ftengine.data.near import Near
from ftengine.data.oddities import MINORITY, ODDITIES, SCRIPT_FEWEST, find_oddities, outlying, script_of
from ftengine.data.personal import KINDS, find_personal, masked
from ftengine.data.read import Rows
from ftengine.data.row_hashes import Material, group_numbers, identities, to_json
from ftengine.data.split_columns import overlapping
from ftengine.run.recipe import DataSection

__all__ = ["audit_splits", "group_numbers", "identities", "to_json"]

SHOWN_PLACES = 5


def audit_splits(
    material: Material,
    units: Units,
    near: Near | None,
    leaks: list[dict[str, Any]],
    section: DataSection,
    task: Task,
    *,
    kept: np.ndarray | None = None,
    asked: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Count what a reader of the results must know about the data.

    Args:
        material: rows and hashes by split, training first.
        units: their distinct examples.
        near: near duplicates among these; None where they were not looked for.
        leaks: from `find_leaks`.
        section: how the recipe divides and compares.
        task: says what of a row is text, and what its target.
        kept: rows of training that stay, where leaks are dropped.
        asked: for a split that was cut from the training source, the share it should have.

    Returns:
        JSON values, as docs/data.md describes them; "warnings" are sentences.
    """
    splits, of, targets = dict(material.splits), dict(units.of), dict(material.targets)
    dropped = 0
    if kept is not None:
        dropped = len(splits["train"]) - len(kept)
        splits["train"] = splits["train"].select(kept)
        of["train"], targets["train"] = of["train"][kept], targets["train"][kept]
    report = {name: _counts(rows, of[name], near) for name, rows in splits.items()}
    looks = {name: _Look(rows, task) for name, rows in splits.items()}
    contradictions = None
    if any(x.any() for x in targets.values()):
        # Words that are written otherwise say the same of the whole, though not each of itself.
        alike = near is not None and not any(look.labels.sequences for look in looks.values())
        of_words = {name: near.same[units] for name, units in of.items()} if near is not None and alike else of
        contradictions = find_contradictions(splits, of_words, targets)
    counts = {name: look.labels.counts() for name, look in looks.items()}
    labels = label_report(counts)
    warnings = _source_warnings(splits, of, near, units, section)
    warnings += _size_warnings(material.splits, asked or {})
    warnings += [_leak_warning(leak, material.splits, section) for leak in leaks]
    if section.split.by == "time":
        times = dict(material.keys) | ({} if kept is None else {"train": material.keys["train"][kept]})
        files = [name for name in splits if name != "train" and name not in (asked or {})]
        warnings += overlapping(splits, times, section.split.column or "", files)
    if dropped:
        warnings.append(
            f"{dropped} of {len(material.splits['train'])} training examples are left out, as they are also held out "
            "(data.leaks: drop)."
        )
    if contradictions and contradictions["texts"]:
        warnings.append(
            f"{_examples(contradictions['texts'], 'occurs', 'occur')} with more than one label "
            f"({contradictions['rows']} rows, e.g. {contradictions['places'][0]})."
        )
    warnings += label_warnings(labels) + alike_warnings(counts)
    for name, look in looks.items():
        warnings += look.warnings(name)
    return {
        "splits": report,
        "split": section.split.model_dump(mode="json"),
        "leaks": [leak | {"dropped": dropped if leak["between"][0] == "train" else 0} for leak in leaks],
        "near_duplicates": _near_report(near, units),
        "contradictions": contradictions,
        "labels": labels,
        "oddities": {name: look.oddities for name, look in looks.items()},
        "scripts": {name: dict(look.scripts.most_common()) for name, look in looks.items()},
        "languages": {name: dict(look.languages.most_common()) for name, look in looks.items()},
        "personal": {name: look.personal for name, look in looks.items()},
        "warnings": warnings,
    }


class _Look:
    """One pass over the rows of a split.

    Attributes:
        labels: how often each label occurs.
        oddities: for each kind that occurs, the "count" of rows and the "places" of the first.
        personal: for each kind that occurs, the "count" of rows and the "places" of the first, values masked.
        scripts: rows by the script of most of their letters.
        languages: rows by their language, of a sample of longer ones in the script that most have.
    """

    def __init__(self, rows: Rows, task: Task) -> None:
        self.labels = LabelCount()
        self.oddities: dict[str, dict[str, Any]] = {}
        self.personal: dict[str, dict[str, Any]] = {}
        self.scripts: Counter[str] = Counter()
        self._rows = rows
        lengths = np.zeros(len(rows), dtype=np.int64)
        shown: dict[str, int] = {}  # the first row of each script
        sample = np.random.default_rng(0).permutation(len(rows))[:SAMPLE]
        sampled = np.zeros(len(rows), dtype=bool)
        sampled[sample] = True
        longer: list[tuple[int, str, str]] = []  # row, script and text
        for i, row in enumerate(rows):
            view = task.view(row)
            self.labels.add(view.label)
            if not view.texts:
                continue
            text = "\n".join(view.texts)
            lengths[i] = len(text.strip())
            for kind in find_oddities(text):
                self._count(self.oddities, kind, i)
            for kind, value in dict(find_personal(text)).items():
                self._count(self.personal, kind, i, f" ({masked(value)})")
            if (script := script_of(text)) is not None:
                self.scripts[script] += 1
                shown.setdefault(script, i)
                if sampled[i] and long_enough(text):
                    longer.append((i, script, text[:CHARACTERS]))
        for kind, found in zip(("short", "long"), outlying(lengths), strict=True):
            for i in found:
                self._count(self.oddities, kind, int(i))
        self._minorities = {
            script: (count, rows.where(shown[script]))
            for script, count in self.scripts.items()
            if sum(self.scripts.values()) >= SCRIPT_FEWEST and count < MINORITY * sum(self.scripts.values())
        }
        self.languages: Counter[str] = Counter()
        self._tongues: dict[str, str] = {}  # a place for each language
        main = self.scripts.most_common(1)
        for i, script, text in longer:
            if script == main[0][0] and (language := language_of(text)) is not None:
                self.languages[language] += 1
                if language not in self._tongues:
                    self._tongues[language] = rows.where(i)

    def _count(self, into: dict[str, dict[str, Any]], kind: str, row: int, what: str = "") -> None:
        entry = into.setdefault(kind, {"count": 0, "places": []})
        entry["count"] += 1
        if len(entry["places"]) < SHOWN_PLACES:
            entry["places"].append(self._rows.where(row) + what)

    def warnings(self, name: str) -> Iterator[str]:
        """Say what was found, a sentence a kind."""
        for kind, text in ODDITIES.items():
            if entry := self.oddities.get(kind):
                yield f"{name}: {_examples(entry['count'], 'has', 'have')} {text}, e.g. {entry['places'][0]}."
        for script, (count, place) in self._minorities.items():
            said = f"{count} of {len(self._rows)} examples {'is' if count == 1 else 'are'}"
            yield f"{name}: {said} mostly in {script.title()} letters, e.g. {place}."
        for language in minorities(self.languages):
            [(main, _)] = self.languages.most_common(1)
            looked_at = f"{self.languages.total()} longer examples{' of a sample' * (len(self._rows) > SAMPLE)}"
            yield (
                f"{name}: {self.languages[language]} of {looked_at} seem to be in another language ({language}) than "
                f"most ({main}), e.g. {self._tongues[language]}."
            )
        for kind, text in KINDS.items():
            if entry := self.personal.get(kind):
                holding = _examples(entry["count"], "holds", "hold")
                yield f"{name}: {holding} what looks like {text}, e.g. {entry['places'][0]}."


def _counts(rows: Rows, unit_of: np.ndarray, near: Near | None) -> dict[str, Any]:
    distinct = np.unique(unit_of)
    return {
        "source": rows.source,
        "rows": len(rows),
        "distinct": len(distinct),
        "duplicates": len(rows) - len(distinct),
        "near_duplicates": 0 if near is None else len(distinct) - len(np.unique(near.groups[distinct])),
        "skipped": {"count": rows.skipped.count, "first": list(rows.skipped.first)},
    }


def _near_report(near: Near | None, units: Units) -> dict[str, Any] | None:
    if near is None:
        return None
    return {
        "threshold": near.threshold,
        "examples": len(near.groups) - len(np.unique(near.groups)),
        "places": [f"{units.where(a)} ≈ {units.where(b)}" for a, b in near.pairs[:SHOWN_PLACES].tolist()],
        "shared_words": near.shared,
        "mostly_shared": near.formal,
    }


def _source_warnings(
    splits: Mapping[str, Rows], of: Mapping[str, np.ndarray], near: Near | None, units: Units, section: DataSection
) -> list[str]:
    warnings = []
    for source in dict.fromkeys(rows.source for rows in splits.values()):
        names = [name for name, rows in splits.items() if rows.source == source]
        skipped = splits[names[0]].skipped
        if skipped.count:
            warnings.append(f"{source}: {skipped.count} malformed rows were left out, the first: {skipped.first[0]}.")
        total = sum(len(splits[name]) for name in names)
        distinct = np.unique(np.concatenate([of[name] for name in names]))
        divided = len(names) > 1 and section.split.duplicates == "together" and section.split.by != "time"
        sides = " of the split" if divided else ""
        if len(distinct) < total:
            only = "only " if len(distinct) < total / 2 else ""
            stay = f"; duplicates stay on one side{sides}" if divided else ""
            warnings.append(f"{source}: {only}{len(distinct)} of {total} examples are distinct{stay}.")
        if near is None:
            continue
        groups = len(np.unique(near.groups[distinct]))
        if groups < len(distinct):
            inside = near.pairs[np.isin(near.pairs, distinct).all(axis=1)]
            place = f", e.g. {units.where(int(inside[0, 0]))} ≈ {units.where(int(inside[0, 1]))}" if len(inside) else ""
            stay = "; near duplicates stay on one side" if divided else ""
            warnings.append(
                f"{source}: {len(distinct) - groups} of {len(distinct)} distinct examples are near duplicates of "
                f"others (similarity ≥ {near.threshold:g}{place}){stay}."
            )
    if near is not None and near.formal:
        warnings.append(
            f"{near.formal} of {len(units)} distinct examples say little beyond what most examples say too (a fifth of "
            "their words or less); near duplicates among them are not told apart."
        )
    return warnings


def _size_warnings(splits: Mapping[str, Rows], asked: Mapping[str, float]) -> list[str]:
    """Speak up where whole groups of duplicates (or very few rows) made a split of quite another size."""
    warnings = []
    for name, fraction in asked.items():
        rows = splits[name]
        total = sum(len(other) for other in splits.values() if other.source == rows.source)
        if abs(len(rows) - fraction * total) > max(1, fraction * total / 2):
            warnings.append(
                f"{rows.source}: {name} has {len(rows)} of {total} examples ({len(rows) / total:.0%}) where "
                f"{fraction:.0%} was asked for, as what belongs together stays together."
            )
    return warnings


def _leak_warning(leak: Mapping[str, Any], splits: Mapping[str, Rows], section: DataSection) -> str:
    said = describe(leak, splits, section)
    serious = leak["between"][0] == "train" and section.leaks != "drop"
    texts = leak["count"] + leak["near"]
    new = "nothing about new data" if texts else "little about new ones"
    return f"{said}{f'; figures on them say {new}' if serious else ''}."


def _examples(count: int, one: str, many: str) -> str:
    return f"1 example {one}" if count == 1 else f"{count} examples {many}"
