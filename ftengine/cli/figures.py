"""Base, tuned and their difference, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftengine.cli.page import table
from ftengine.cli.text import number

if TYPE_CHECKING:
    from rich.console import Console

MOST_LABELS = 12
"""A larger confusion matrix does not fit on a page; `--json` has it."""


def show_figures(out: Console, figures: dict[str, Any]) -> None:
    """Print the figures of an evaluation: {split, base, tuned, difference, details}."""
    if not figures["tuned"]:
        out.print("no held-out data, so there are no figures (data.validation, data.test)")
        return
    examples = next(iter(figures["tuned"].values()))["n"]
    out.print(f"figures on {figures['split']} ({examples:,} distinct examples), with 95 % intervals:")
    out.print(figure_table(figures["base"], figures["tuned"], figures["difference"]))


def figure_table(base: dict[str, Any], tuned: dict[str, Any], difference: dict[str, Any]) -> Any:
    """Return a table with a line for each metric: base, tuned, their difference, and what it means."""
    rows = [
        (
            metric,
            _with_interval(base.get(metric)),
            _with_interval(figure),
            _with_interval(difference.get(metric), sign="+"),
            verdict(difference.get(metric)),
        )
        for metric, figure in tuned.items()
    ]
    return table(("metric", "base", "tuned", "difference", ""), rows, left=5)


def show_confusion(out: Console, figures: dict[str, Any]) -> None:
    """Print the tuned model's confusion matrix, where an evaluator made one that is small."""
    for details in figures["details"].get("tuned", {}).values():
        matrix, labels = details.get("confusion"), [str(row["label"]) for row in details.get("labels", ())]
        if matrix and len(matrix) == len(labels) <= MOST_LABELS:
            out.print()
            out.print("tuned model, true label by row, predicted by column:")
            rows = [(label, *(f"{count:,}" for count in row)) for label, row in zip(labels, matrix, strict=True)]
            out.print(table(("", *labels), rows))


def verdict(difference: dict[str, Any] | None) -> str:
    """Say in words what a difference means."""
    if difference is None or difference["value"] is None:
        return ""
    low, high, p, better = difference["low"], difference["high"], difference["p"], difference.get("better")
    if better is not None:
        word = "better" if better else "worse"
    elif low is None or high is None or p is None:
        return "too few examples to tell"
    elif low <= 0 <= high or p > 0.05:
        return "no difference beyond chance"
    else:  # the evaluator does not say which direction is good
        word = "higher" if low > 0 else "lower"
    return f"{word} (p = {number(p)})"


def _with_interval(figure: dict[str, Any] | None, sign: str = "") -> str:
    if figure is None or figure["value"] is None:
        return "–"
    value = number(figure["value"])
    value = f"{sign}{value}" if sign and figure["value"] > 0 else value
    return value if figure["low"] is None else f"{value} [{number(figure['low'])}, {number(figure['high'])}]"
