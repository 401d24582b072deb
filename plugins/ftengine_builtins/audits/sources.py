"""Audits of reading and splitting: lost rows, repeated rows, rows in two splits."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ftengine.api import Audit, AuditedData, Finding, Level
from ftengine.text import counted, percent
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.audits.missing_texts import is_placeholder


class Reading(Audit):
    """Reports rows that could not be read or are excluded, unusual files, and splits of another size than asked for."""

    name = "reading"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        for source in data.facts["sources"]:
            if source["note"]:
                yield Finding(kind="data", level="good", text=f"{source['source']} {source['note']}.")
            if count := source["skipped"]["count"]:
                were = counted(count, "malformed row was", "malformed rows were")
                first = source["skipped"]["first"]
                text = f"{source['source']}: {were} left out, the first: {first[0].rstrip('.?')}."
                yield Finding(kind="data", level="note", text=text, figures={"skipped": count}, places=tuple(first[:5]))
            if count := source["excluded"]:
                rows, are = counted(source["rows"] + count, "row"), "is" if count == 1 else "are"
                text = f"{count:,} of {rows} of {source['source']} {are} left out, as {data.settings['exclude']} "
                text += "(data.exclude) lists them."
                yield Finding(kind="data", level="note", text=text, figures={"excluded": count})
        for name, size in data.facts["sizes"].items():
            rows, of, asked = size["rows"], size["of"], size["asked"]
            if abs(rows - asked * of) > max(1, asked * of / 2):
                text = f"{size['source']}: {name} has {rows:,} of {of:,} rows ({percent(rows / of)}) where "
                text += f"{percent(asked)} was asked for, as copies and groups stay in one split."
                yield Finding(kind="data", level="note", text=text, figures={"split": name, **size})


REPEATED = 0.5
"""Share of rows that repeat another, from which it is an alarm: the set is less than half of what it looks like."""


OTHER_LABELS = 0.2
"""Share of near duplicates with other labels, at the interval's near end, from which they are texts of one form, in
which single words decide, and no copies. Noise puts a wrong label on one side of a pair or the other."""


def are_of_one_form(facts: Mapping[str, Any]) -> bool:
    """Return whether near duplicates differ in their labels so often that they are no copies, by an audit's facts."""
    labels = (facts.get("near_duplicates") or {}).get("labels") or {"pairs": 0}
    return labels["pairs"] > 0 and share_within(labels["other"], labels["pairs"])[0] >= OTHER_LABELS


def of_one_form(facts: Mapping[str, Any]) -> str:
    """Return a sentence, with a leading space, on near duplicates with different labels; "" if they may be copies."""
    if not are_of_one_form(facts):
        return ""
    labels = facts["near_duplicates"]["labels"]
    share = percent(labels["other"] / labels["pairs"])
    return f" {share} of such pairs have different labels, so they are texts of one pattern rather than copies."


class Duplicates(Audit):
    """Finds duplicates and near duplicates within a source."""

    name = "duplicates"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        compared = data.facts["near_duplicates"]
        split = data.settings["split"]
        together = split["duplicates"] == "together" and split["by"] != "time"
        for source in data.facts["sources"]:
            stay = "; copies stay in one split" if together and len(source["splits"]) > 1 else ""
            rows, distinct, near = source["rows"], source["distinct"], source["near_duplicates"]
            if equal := rows - distinct:
                text = f"{equal:,} of {rows:,} rows of {source['source']} {_repeat(equal)} another; {distinct:,} "
                text += f"{'is' if distinct == 1 else 'are'} distinct{stay}."
                level = "alarm" if equal >= REPEATED * rows else "note"
                figures = {"duplicates": equal, "rows": rows, "distinct": distinct}
                yield Finding(kind="data", level=level, text=text, figures=figures)
            if near:
                at = f"Jaccard similarity ≥ {compared['threshold']:g}"
                places = tuple(source["places"])
                text = f"{near:,} of {distinct:,} distinct rows of {source['source']} nearly {_repeat(near)} another "
                text += f"({', e.g. '.join([at, *places[:1]])}){stay}."
                text += of_one_form(data.facts)
                level = "alarm" if near >= REPEATED * distinct and not are_of_one_form(data.facts) else "note"
                figures = {"near_duplicates": near, "distinct": distinct, "threshold": compared["threshold"]}
                yield Finding(kind="data", level=level, text=text, figures=figures, places=places)
        counts = data.facts["splits"].values()
        if not any(split["duplicates"] for split in counts):
            looked = compared is not None and not any(split["near_duplicates"] for split in counts)
            text = f"No split holds duplicate{' or near-duplicate' if looked else ''} rows."
            yield Finding(kind="data", level="good", text=text)
        if compared and compared["mostly_shared"]:
            text = f"{compared['mostly_shared']:,} of {compared['distinct']:,} distinct rows consist mostly of "
            text += "words that most rows share (four fifths or more), so they were not searched for near duplicates."
            yield Finding(kind="data", level="note", text=text, figures=dict(compared))


def _repeat(count: int) -> str:
    return "repeats" if count == 1 else "repeat"


SAME_ROWS = 0.5
"""Share of the test rows that repeat a validation row, from which the two are one set: no row is left that only
tests."""


def leak_level(
    leak: Mapping[str, Any],
    leaks: str,
    rows: int,
    *,
    measured: bool,
    placeholders: bool = False,
    one_form: bool = False,
) -> Level:
    """Return the level of a leak between two splits, for audits and for rules.

    It is "alarm" if measured rows are copies of training rows or share their group, or if near copies are frequent
    enough to change a figure significantly (the 95 % interval of a share of n rows is at most about 1/√n to each side).
    For a split that only selects weights, the same frequency of copies is an alarm; between validation and test, half
    of the test rows. Rows with one placeholder, such as N/A, do not count.

    Args:
        leaks: the recipe's data.leaks; with "warn" figures are made on the rows that do not leak, where there are any.
        rows: number of rows of the second split.
        measured: whether figures are computed on the second split.
        placeholders: whether a short text that most of the rows have is a known placeholder.
        one_form: whether near duplicates are no copies (`are_of_one_form`).
    """
    exact, near = leak["count"], 0 if one_form else leak["near"]
    if leak.get("one_text") and (placeholders or is_placeholder(leak["one_text"][0])):
        exact -= leak["one_text"][1]
    if leak["between"][0] != "train":
        return "alarm" if exact + near >= SAME_ROWS * rows else "note"
    if leaks == "drop" or (measured and set_apart(leak, leaks, rows)):
        return "note"
    certain = measured and exact + leak.get("groups", 0) > 0
    return "alarm" if certain or exact + near > math.sqrt(rows) else "note"


def set_apart(leak: Mapping[str, Any], leaks: str, rows: int) -> bool:
    """Return whether rows that leak from training are measured separately."""
    return leak["between"][0] == "train" and leaks == "warn" and leak["rows"] < rows


def _compared_how(data: AuditedData) -> str:
    """Return in brackets for which rows only equal ones were looked for; "" if for none."""
    near = data.facts["near_duplicates"]
    if near is None:
        return " (only equal rows were looked for)"
    if near.get("short"):
        return f" ({counted(near['short'], 'text')} of fewer than 16 words: word for word)"
    return ""


class Leaks(Audit):
    """Finds rows in two splits, and held-out rows that are not later than training rows."""

    name = "leaks"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        for leak in data.facts["leaks"]:
            known, held = leak["between"]
            groups, rows, leaks = leak.get("groups", 0), len(data.splits[held]), data.settings["leaks"]
            measured = held == list(data.splits)[-1]  # figures are made on test, or on validation where there is none
            then = "figures on them say little about new groups"
            if measured and set_apart(leak, leaks, rows):
                then = "they are measured separately, and left out of all other figures"
            elif leak["count"] + leak["near"]:
                then = "figures on them say nothing about new data"
            one_form = leak["near"] > 0 and are_of_one_form(data.facts)
            level = leak_level(leak, leaks, rows, measured=measured, one_form=one_form)
            if known != "train":
                then = "figures on it are of rows that choose the weights" if level == "alarm" else ""
            if one_form and not leak["count"]:
                then = ""
            text = f"{leak['text']}{f'; {then}' if then and leaks != 'drop' else ''}."
            text += of_one_form(data.facts) if one_form else ""
            figures = {key: leak[key] for key in ("between", "count", "near", "dropped")} | {"groups": groups}
            yield Finding(kind="data", level=level, text=text, figures=figures, places=tuple(leak["places"]))
        if len(data.splits) > 1 and not any(leak["between"][0] == "train" for leak in data.facts["leaks"]):
            text = f"No held-out row is in training{_compared_how(data)}."
            yield Finding(kind="data", level="good", text=text)
        if dropped := data.facts["dropped"]:
            of = len(data.splits["train"]) + dropped
            are, also = ("is", "it is") if dropped == 1 else ("are", "they are")
            text = f"{dropped:,} of {of:,} training rows {are} left out, as {also} also held out (data.leaks: drop)."
            yield Finding(kind="data", level="note", text=text, figures={"dropped": dropped, "rows": of})
        for late in data.facts["overlap"]:
            split, (begun, ended) = late["split"], late["places"]
            text = f"{late['rows']:,} of {len(data.splits[split]):,} {split} rows are no later than the last of "
            text += f"training: {split} begins at {late['begins']} ({begun}), training ends at {late['ends']} "
            text += f"({ended}); figures on it say less about the future."
            yield Finding(kind="data", level="note", text=text, figures=dict(late), places=tuple(late["places"]))
