"""Truths about columns that nothing reads: ids, annotators, units, and the text itself.

Read with those of verdicts_truths.py by benchmarks/verdicts.py.
"""

from __future__ import annotations

import random

from verdicts_truths import OF_USE, ONLY_BETTER, Rows, by, in_all, runs_of

OF_COLUMNS = (*OF_USE, "labels", "over-fitting", "data", "slices")


def of_patients(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Six rows are of one patient, whose outcome is theirs, whatever they say; all rows are one file."""
    rows = splits["train"]
    for start in range(0, len(rows), 6):
        outcome = draw.choice(["home", "ward"])
        for row in rows[start : start + 6]:
            row |= {"patient_id": f"P{start:04d}", "label": outcome}
    draw.shuffle(rows)


def annotators(draw: random.Random, rows: Rows) -> None:
    """One of three annotators, of 40 % of the rows, exchanges two classes."""
    one, other = sorted({row["label"] for row in rows})[:2]
    for row in rows:
        row["annotator"] = draw.choices(["anna", "ben", "carl"], [0.3, 0.3, 0.4])[0]
        if row["annotator"] == "carl":
            row["label"] = {one: other, other: one}.get(row["label"], row["label"])


def clinics(draw: random.Random, rows: Rows) -> None:
    """One of three clinics, of 30 % of the rows, gives hours instead of days."""
    for row in rows:
        row["clinic"] = draw.choices(["Nord", "Mitte", "West"], [0.3, 0.4, 0.3])[0]
        if row["clinic"] == "Nord":
            row["label"] = round(24 * row["label"], 2)


def numbered_cases(draw: random.Random, rows: Rows) -> None:
    """What is read is the case's number, and what was said is in another column."""
    for row in rows:
        row["description"], row["text"] = row["text"], f"case {draw.randrange(10**6, 10**7)}"


def with_harmless_columns(draw: random.Random, rows: Rows) -> None:
    """An id of each row, annotators who agree, sessions of many labels, and a description that repeats the text."""
    for number, row in enumerate(rows):
        row |= {"id": f"C{number:05d}", "annotator": draw.choice(["anna", "ben", "carl"]),
                "session": f"S{draw.randrange(max(1, len(rows) // 4)):04d}",
                "description": f"{row['text']} and so on"}  # fmt: skip


def clinics_with_other_patients(draw: random.Random, rows: Rows) -> None:
    """One clinic's grades are somewhat higher."""
    for row in rows:
        row["clinic"] = draw.choices(["Nord", "Mitte", "West"], [0.3, 0.4, 0.3])[0]
        row["label"] = round(row["label"] + (0.3 if row["clinic"] == "Nord" else 0), 3)


TRUTHS = [
    *runs_of("rows of one patient on both sides", by("unread-groups", "shared", level="alarm"), "words",
             spoil=of_patients, sizes=(720, 0, 0), data={"validation": 0.1, "test": 0.2}, fits=OF_COLUMNS, usable=True),
    *runs_of("an annotator exchanges two classes", by("labels-by-column", "confused", level="alarm"), "words news",
             spoil=in_all(annotators), fits=OF_COLUMNS, usable=True),
    *runs_of("a clinic in hours", by("labels-by-column", "factor", level="alarm"), "grades", spoil=in_all(clinics),
             fits=OF_COLUMNS, usable=True),
    *runs_of("the text is in another column", by("unread-columns", "text", level="alarm"), "words news",
             spoil=in_all(numbered_cases), fits=OF_COLUMNS),
    *runs_of("sound, harmless columns", ONLY_BETTER, "words news", spoil=in_all(with_harmless_columns), usable=True),
    *runs_of("sound, clinics with other patients", ONLY_BETTER, "grades", spoil=in_all(clinics_with_other_patients),
             usable=True),
]  # fmt: skip
