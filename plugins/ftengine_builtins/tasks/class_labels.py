"""Labels of a data set: their kind, their names, and their conversion to numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from ftengine.api import Example
from ftengine.errors import DataError, did_you_mean, shown
from ftengine.text import comparable

SHOWN_NAMES = 10
LEAST_VALUES = 10
"""More labels than this that mostly differ are not classes."""
_TRUTHS = frozenset({"false", "true"})
MISSING = frozenset({"nan", "none", "null", "na", "n/a", "nil", "#n/a", "-", "?", "<na>", "nat", "missing"})
"""Texts that programs write for a missing value."""
_SPACE = re.compile(r"\s")
_WHOLE = re.compile(r"^([+-]?\d+)\.0+$")
_DECIMAL_COMMA = re.compile(r"\s*([-+]?\d[\d.]*),(\d+)\s*")


def kind_of(values: Iterable[Any]) -> str:
    """Return the kind of label that these values are: "multi", "regression" or "single".

    A list among them means several labels a row. Numbers, also as text, of which one has a fractional part, mean
    regression; `read_number` then refuses numbers in another format ("1,5") and missing values ("n/a"). Everything
    else, including other text among numbers, means one label a row.
    """
    fractional = named = False
    for value in values:
        if isinstance(value, (list, tuple, set)):
            return "multi"
        number = as_number(value)
        named = named or (number is None and isinstance(value, str) and not _may_be_number(value.strip()))
        fractional = fractional or (number is not None and not number.is_integer())
    return "regression" if fractional and not named else "single"


def _may_be_number(text: str) -> bool:
    """Return whether a text stands for a missing number, or is a number in a format that is not supported."""
    if not text or text.casefold() in MISSING or with_point(text):
        return True
    return _is_not_finite(text) or as_number(text.replace("_", "")) is not None


def _is_not_finite(value: Any) -> bool:
    """Return whether a value is a NaN or an infinite number, also as text."""
    try:
        return isinstance(value, (float, str)) and not math.isfinite(float(value))
    except ValueError:
        return False


def as_number(value: Any) -> float | None:
    """Return a finite number, also from text, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    if isinstance(value, str) and "_" in value:  # Python reads 1_5 as 15
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def with_point(value: Any) -> str:
    """Return a number with a decimal comma in the supported format, "2.481" for "2,481"; "" for all else."""
    match = _DECIMAL_COMMA.fullmatch(value) if isinstance(value, str) else None
    return f"{match[1].replace('.', '')}.{match[2]}" if match else ""


def read_name(value: Any) -> str:
    """Return the name of a single label: text, a whole number, or true and false (DataError: another type).

    Surrounding white space is removed.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
        value = int(value)
    name = str(value).strip() if isinstance(value, (int, str)) else ""
    if not comparable(name).strip():
        raise DataError(f"the label is {shown(value)}; it must be text or a whole number.")
    return name


def read_names(value: Any, separator: str) -> list[str]:
    """Return the names of a row's labels: a list, or text with a separator; maybe none (DataError: another type)."""
    if isinstance(value, str):
        value = [name for name in value.split(separator) if name.strip()]
    if not isinstance(value, (list, tuple, set)):
        raise DataError(
            f"the labels are {shown(value)}; they must be a list, or text with {separator!r} between names "
            "(an empty list or text for none)."
        )
    return [read_name(name) for name in value]


def refuse_joined(names: Iterable[str], separator: str, column: str) -> None:
    """Raise DataError for a name that may be several: all of its parts also occur in other names."""
    parts = {name: {part.strip() for part in name.split(separator)} for name in names}
    counts = Counter(part for own in parts.values() for part in own)
    for name, own in parts.items():
        if len(own) > 1 and all(counts[part] > 1 for part in own):
            raise DataError(
                f"label {name!r} of column {column!r} may be one name, or several names with {separator!r} between "
                "them. Set task.kind=single or task.kind=multi."
            )


def read_number(value: Any) -> float:
    """Return a row's target for regression (DataError: it is no finite number)."""
    number = as_number(value)
    if number is None:
        hint = f": write {point}, as a decimal comma is not read" if (point := with_point(value)) else ""
        if isinstance(value, str) and not hint:
            hint = ". If labels are names of classes, set task.kind=single"
        raise DataError(f"the label is {shown(value)}; regression needs a finite number{hint}.")
    return number


def refuse_decimal_commas(names: Iterable[str]) -> None:
    """Refuse to treat numbers with decimal commas as names (DataError, which shows one)."""
    numbers = {name: with_point(name) for name in names if as_number(name) is None}
    if numbers and all(numbers.values()):
        name, point = next(iter(numbers.items()))
        raise DataError(
            f"labels such as {name!r} seem to be numbers with a decimal comma, which is not supported: write {point}. "
            "If they are names of classes, set task.kind=single."
        )


def refuse_numbers(counts: Mapping[str, int], column: str) -> None:
    """Raise DataError if most rows have different labels and most labels are numbers: they are hardly classes."""
    rows, numbers = sum(counts.values()), sum(as_number(name) is not None for name in counts)
    if rows < LEAST_VALUES or len(counts) <= rows / 2 or numbers <= len(counts) / 2:
        return
    other = next((name for name in counts if as_number(name) is None), None)
    leave = f", and leave out rows such as that of {other!r} with data.on_error=skip" if other is not None else ""
    raise DataError(
        f"column {column!r} has {len(counts):,} different labels in {rows:,} training rows, and most are numbers. To "
        f"learn them as numbers, set task.kind=regression{leave}. If they are names of classes, set "
        "task.kind=single."
    )


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort label names: whole numbers by value, so that label 10 follows 9, everything else by letter."""
    names = set(names)
    integers = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name)) if integers else sorted(names))


def looks(name: str) -> str:
    """Return a label's normal form: `comparable`, and any white space as one space.

    Whole numbers lose their fraction ("7.0" is "7", as pandas writes a column with gaps), and true and false are in
    lower case. Codes such as "007" stay as they are, and so do forms that readers distinguish ("m²", "m2").
    """
    shape = _WHOLE.sub(r"\1", _SPACE.sub(" ", comparable(name)).strip())
    return shape.lower() if shape.lower() in _TRUTHS else shape


def one_spelling(names: Mapping[str, int]) -> set[str]:
    """Return names without those that look like a more frequent one; `encode` refuses rows with the latter.

    If all others are numbers, a text that is not a finite number ("nan") is no name either. Of true and false beside 0
    and 1, the rarer pair is dropped.
    """
    best: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (-names[name], name)):
        best.setdefault(looks(name), name)
    spellings = {name for name in best.values() if not _is_not_finite(name)}
    truths = {name for name in spellings if looks(name) in _TRUTHS}
    if truths and {*map(looks, spellings - truths)} in ({"0"}, {"1"}, {"0", "1"}):
        spellings = max(truths, spellings - truths, key=lambda part: sum(names[name] for name in part))
    numbers = all(as_number(name) is not None or name in truths for name in spellings)
    return spellings if len(spellings) > 1 and numbers else set(best.values())


def unknown_label(name: str, names: tuple[str, ...]) -> DataError:
    """Make the error for a label that training does not have, or has in another spelling."""
    if twin := next((other for other in names if looks(other) == looks(name)), None):
        return DataError(
            f"label {_exactly(name)} looks like {_exactly(twin)}, which more training rows have, but the texts "
            "differ and would be two classes. Write both alike."
        )
    numbers = all(as_number(other) is not None for other in names)
    if (numbers and _is_not_finite(name)) or {*map(looks, (name, *names))} <= {"0", "1", *_TRUTHS}:
        kind = "a finite number" if numbers else "true or false"
        return DataError(
            f"label {name!r} is not {kind}, as most labels of training are. Correct it, or leave the row out."
        )
    shown_names = ", ".join(map(repr, names[:SHOWN_NAMES])) + (", …" if len(names) > SHOWN_NAMES else "")
    point = with_point(name)
    hint = f" If its comma is a decimal one, write {point}." if point else did_you_mean(name, names)
    return DataError(f"label {name!r} does not occur in training; there are {len(names)} labels: {shown_names}.{hint}")


def _exactly(name: str) -> str:
    """Return a name with the code points of invisible characters."""
    return repr(name) if repr(name) == ascii(name) else f"{name!r} ({name!a})"


def refuse_new_labels(
    splits: Mapping[str, Iterable[Example]], names_of: Callable[[Example], Iterable[str]], names: tuple[str, ...]
) -> None:
    """Refuse a label that occurs only outside of training (DataError, which names label and split).

    One that only looks like a label of training is left to `encode`, so that such rows can be skipped.
    """
    exact, alike = set(names), {looks(name) for name in names}
    for split, rows in splits.items():
        for row in rows if split != "train" else ():
            for name in names_of(row):
                if name not in exact and looks(name) not in alike:
                    raise DataError(f"{unknown_label(name, names)} Only the {split} split has it.")
