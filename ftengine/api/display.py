"""Findings in words, tables, matrices and charts that components return to be shown, as plain values.

The report and the command line draw them without knowing which component made them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, field_validator

Level = Literal["alarm", "note", "good"]
"""How much a finding matters."""

LEVELS: tuple[str, ...] = get_args(Level)
"""The worst first."""


class Shown(BaseModel):
    """Base of what can be shown: immutable, JSON values alone, no further fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Finding(Shown):
    """A fact about the data or the run that a reader should know.

    Args:
        kind: topic: "quality", "over-fitting", "slices", "data", …; findings of one kind are shown together. The worst
            of kind "quality" heads the verdict; those of kind "judges" (what people or models who judged prefer)
            are repeated by `compare`.
        level: "alarm" (look at this before the model is used), "note" (know it) or "good".
        text: one or two plain sentences with the figures: first what to do; ends with a full stop. For kind "quality"
            it begins with the figures of tuned model and base, as it may be the headline.
        brief: the finding in about 100 characters, for a headline of two findings: lower case, without full stop
            ("train longer: the loss still fell"); for kind "quality" the figures ("accuracy 82 %, base 17 %"). "": use
            the text.
        explains: kinds of findings that this one causes: findings of its own level, or of any level if it is an alarm.
            They are shown after the others; if "quality" is among them, this finding leads the headline. Two findings
            that explain each other both stay, but "quality" is always the effect.
        figures: the numbers that the text rests on: JSON values, and estimates or differences, which become such.
        places: where it was found, e.g. "train.jsonl:17", the first few.
        source: the rule or audit that found it; the engine fills it in.
        explained_by: the source of the finding that explains this one; the engine fills it in.
    """

    kind: str
    level: Level
    text: str
    brief: str = ""
    explains: tuple[str, ...] = ()
    figures: dict[str, Any] = {}
    places: tuple[str, ...] = ()
    source: str = ""
    explained_by: str = ""

    @field_validator("figures", mode="before")
    @classmethod
    def _as_json(cls, figures: Any) -> Any:
        return {k: _json_value(value) for k, value in figures.items()} if isinstance(figures, Mapping) else figures


def _json_value(value: Any) -> Any:
    """Return a figure as its fields, with None for numbers that JSON lacks; other values unchanged."""
    if is_dataclass(value):
        return {name: _json_value(inner) for name, inner in vars(value).items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Table(Shown):
    """A table: a title, names of columns, and rows of as many cells (text, numbers or None)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    caption: str = ""


class Matrix(Shown):
    """Counts by row and column, shaded by their share of the row, such as a confusion matrix (rows: truth)."""

    title: str
    names: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]
    row_label: str = ""
    column_label: str = ""
    caption: str = ""


class Line(Shown):
    """One line of a chart.

    Args:
        name: for the legend; "" if it is the only one.
        points: (x, y) in the order of x.
        look: "base" or "tuned"; "faint" for a line in the background, "smooth" for its running mean; "" for a style of
            its own.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    look: Literal["", "base", "tuned", "faint", "smooth"] = ""


class LineChart(Shown):
    """Lines over common axes. Charts of base and tuned model with one title are drawn into one.

    Args:
        ends: (low, high) of both axes; None: the range of the points.
        diagonal: draw y = x for comparison, as a reliability diagram has it.
        mark: an x and its name, drawn as a vertical line.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    ends: tuple[float, float] | None = None
    diagonal: bool = False
    mark: tuple[float, str] | None = None
    caption: str = ""


Display = Table | Matrix | LineChart
"""What a report can show."""
