"""Base, tuned and their difference, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftengine.cli.page import table
from ftengine.report.text import number, one_line

if TYPE_CHECKING:
    from rich.console import Console

MOST_SLICES = 10
"""Slices of a column that are printed."""
MOST_METRICS = 3
"""Figures of each change of the examples that are printed; `--json` has the others."""
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
    from ftengine.report.words import no_interval

    counts = {figure["n"] for figure in tuned.values()}
    rows = [
        (
            metric if len(counts) < 2 else f"{metric} (n = {figure['n']:,})",
            _told(metric, base.get(metric)),
            _told(metric, figure),
            _with_interval(difference.get(metric), sign="+"),
            verdict(difference.get(metric), no_interval(metric, tuned)),
        )
        for metric, figure in tuned.items()
    ]
    return table(("metric", "base", "tuned", "difference", ""), rows, left=5)


def show_slices(out: Console, figures: dict[str, Any]) -> None:
    """Print how each slice of the held-out examples is served, the worst first."""
    for column, content in figures.get("slices", {}).items():
        metric, slices = content["metric"], content["slices"]
        if metric is None or not slices:
            continue
        up = figures["metrics"][metric]["higher_is_better"]
        known = [one for one in slices if one["tuned"].get(metric, {}).get("value") is not None]
        known.sort(key=lambda one: one["tuned"][metric]["value"] * (1 if up else -1))
        out.print()
        out.print(
            one_line(f"{metric} by {column}, worst first; gap to all other examples, p adjusted for all slices (Holm):")
        )
        rows = [
            (
                one["value"],
                f"{one['examples']:,}{' (few)' if one['small'] else ''}",
                number(one["base"].get(metric, {}).get("value")),
                _with_interval(one["tuned"][metric]),
                _with_interval(one["gap"], sign="+"),
                "–" if one["gap"] is None else _p_value(one["gap"]["p_adjusted"]),
            )
            for one in known[:MOST_SLICES]
        ]
        out.print(table((column, "examples", "base", "tuned", "gap", "p"), rows, left=6))
        left = len(known) - MOST_SLICES
        if left > 0:
            out.print(f"{left:,} more slices are served better; --json has them")


def show_probes(out: Console, figures: dict[str, Any]) -> None:
    """Print what was measured beside the held-out examples."""
    from ftengine.report.words import no_interval

    probes = figures.get("probes", [])
    robustness = [
        (
            probe["name"],
            metric,
            _with_interval(figures["tuned"].get(metric)),
            _with_interval(probe["tuned"].get(metric)),
            _with_interval(change, sign="+"),
            verdict(change, no_interval(metric, probe["tuned"])),
        )
        for probe in probes
        if probe["kind"] == "robustness"
        for metric, change in list(probe["against"].items())[:MOST_METRICS]
    ]
    if robustness:
        out.print()
        out.print("robustness of the tuned model, on the same examples as they are and changed:")
        out.print(table(("changed by", "metric", "as they are", "changed", "difference", ""), robustness, left=6))
    for probe in probes:
        if probe["kind"] == "robustness":
            continue
        out.print()
        out.print(one_line(f"{probe['kind']} on {probe['data']} ({probe['examples']:,} examples):"))
        out.print(figure_table(probe["base"], probe["tuned"], probe["difference"]))
        for metric, gap in probe["against"].items():
            lead = f"{metric} of the tuned model, training minus held-out"
            said = verdict(gap, no_interval(metric, probe["tuned"]))
            out.print(f"{lead}: {_with_interval(gap, sign='+')} {said}".rstrip())


def show_confusion(out: Console, figures: dict[str, Any]) -> None:
    """Print the tuned model's confusion matrix, where an evaluator made one that is small."""
    for details in figures["details"].get("tuned", {}).values():
        matrix, labels = details.get("confusion"), [str(row["label"]) for row in details.get("labels", ())]
        if matrix and len(matrix) == len(labels) <= MOST_LABELS:
            out.print()
            out.print("tuned model, true label by row, predicted by column:")
            rows = [(label, *(f"{count:,}" for count in row)) for label, row in zip(labels, matrix, strict=True)]
            out.print(table(("", *labels), rows))


def verdict(difference: dict[str, Any] | None, no_interval: str = "no interval") -> str:
    """Say in words what a difference means.

    Args:
        difference: as evaluation.json holds it.
        no_interval: what is said where it has no interval.
    """
    if difference is None or difference["value"] is None:
        return ""
    low, high, p, better = difference["low"], difference["high"], difference["p"], difference.get("better")
    if better is not None:
        word = "better" if better else "worse"
    elif low is None or high is None or p is None:
        return no_interval
    elif low <= 0 <= high or p > 0.05:
        return "no difference beyond chance"
    else:  # the evaluator does not say which direction is good
        word = "higher" if low > 0 else "lower"
    return f"{word} (p {_p_value(p, '= ')})"


def _p_value(p: float | None, equals: str = "") -> str:
    """Return a p-value with two digits, as the verdict and the report show it."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{equals}{number(float(f'{p:.2g}'))}"


def _told(metric: str, figure: dict[str, Any] | None) -> str:
    """Return a model's figure, and what it means where that is not what it seems."""
    from ftengine.report.words import at_zero

    meaning = at_zero(metric, figure)
    return f"{_with_interval(figure)} ({meaning})" if meaning else _with_interval(figure)


def _with_interval(figure: dict[str, Any] | None, sign: str = "") -> str:
    if figure is None or figure["value"] is None:
        return "–"
    value = number(figure["value"])
    value = f"{sign}{value}" if sign and figure["value"] > 0 else value
    return value if figure["low"] is None else f"{value} [{number(figure['low'])}, {number(figure['high'])}]"
