"""The verdict, and base, tuned and their difference as tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any

from ftengine.cli.page import table
from ftengine.text import (
    at_zero,
    capitalized,
    counted,
    ends,
    few_groups,
    has_value,
    left_out,
    no_interval,
    one_line,
    plain,
    probability,
    sample_size,
    with_ends,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ftengine.api import Difference, Estimate, Metric
    from ftengine.run.evaluation_result import EvaluationResult
    from ftengine.run.records import Verdict

MOST_FINDINGS, MOST_LINES = 3, 2
"""Findings printed below the headline, and lines of each; the report has all of them at full length."""
MOST_SLICES = 10
"""Slices of a column that are printed."""
INTERVAL = re.compile(r" \(95 % interval [^()]*\)")
"""The interval in a finding's text, which a headline leaves out."""
DECIDING = 5
"""Metrics in `train`'s table; the report and `evaluate` have all."""
CHANGED = ("robustness", "ablation")
"""Kinds of probes that measure the held-out examples with changed input."""
MOST_METRICS = 3
"""Figures of each change of the examples that are printed; `--json` has the others."""
MOST_LABELS = 12
"""A larger matrix does not fit on a page; `--json` has it."""
WIDEST = 110
"""Columns of running text; longer lines are hard to read."""


def show_verdict(out: Console, verdict: Verdict) -> None:
    """Print the headline and the most important findings, alarms first, each on two lines at most.

    Findings that another finding explains are only in the report.
    """
    width = min(out.width, WIDEST)
    out.print(fill(one_line(verdict.headline), width), style="bold", soft_wrap=True)
    # A headline has a cause or an alarm in brief; if that leaves something out, it is printed below at full length.
    brief = [
        finding
        for finding in verdict.lead[:-1]
        if finding.brief and INTERVAL.sub("", finding.text) != f"{capitalized(finding.brief)}."
    ]
    shown = [*brief, *(finding for finding in verdict.rest if not finding.explained_by)][:MOST_FINDINGS]
    for finding in shown:
        lead = {"alarm": "ALARM", "note": "note ", "good": "good "}[finding.level]
        text = f"  {lead}  {one_line(finding.text)}"
        lines = fill(
            text, width, subsequent_indent=" " * 9, max_lines=MOST_LINES, placeholder=" …", break_long_words=False
        )
        out.print(lines, soft_wrap=True)
    if (more := len(brief) + len(verdict.rest) - len(shown)) > 0:
        out.print(f"  {more:,} more, and all at full length, in the run's report.html", soft_wrap=True)


def show_figures(out: Console, result: EvaluationResult, *, all_metrics: bool = True) -> None:
    """Print base, tuned and their difference, for all metrics or for the DECIDING most important."""
    if not result.tuned:
        out.print("no held-out data, so there are no figures (data.validation, data.test)")
        return

    first = next(iter(result.tuned.values()))
    intervals = "without intervals"
    if any(ends(figure) is not None for figure in result.tuned.values()):
        intervals = "with 95 % intervals"
    elif any(metric.interval for metric in result.metrics.values()):
        intervals = "too few for intervals"
    out.print(f"figures on {result.split} ({sample_size(first.n, first.rows)}{left_out(result.leaks)}), {intervals}:")
    shown = result.tuned if all_metrics else _deciding(result)
    out.print(figure_table(result.base, shown, result.difference, result.metrics))
    if left := len(result.tuned) - len(shown):
        out.print(f"{counted(left, 'more metric')} in report.html")
    if few := few_groups(first.n, first.worth):
        out.print(few)


def _deciding(result: EvaluationResult) -> dict[str, Estimate]:
    """Return the most important figures: the headline metric first, then quality, then those with intervals."""

    def order(name: str) -> tuple[bool, bool, bool]:
        declared = result.metrics[name]
        return name != result.headline_metric, declared.kind != "quality", not declared.interval

    return {name: result.tuned[name] for name in sorted(result.tuned, key=order)[:DECIDING]}


def figure_table(
    base: Mapping[str, Estimate],
    tuned: Mapping[str, Estimate],
    difference: Mapping[str, Difference],
    metrics: Mapping[str, Metric],
) -> Any:
    """Return a table with a line for each metric: base, tuned, their difference, and what it means."""
    from ftengine.run.evaluation_result import quality_first

    counts = {figure.n for figure in tuned.values()}
    rows = [
        (
            metric if len(counts) < 2 else f"{metric} (n = {figure.n:,})",
            _with_meaning(metrics.get(metric), base.get(metric)),
            _with_meaning(metrics.get(metric), figure),
            with_ends(difference.get(metric), sign=True),
            verdict(difference.get(metric), no_interval(metric, metrics, tuned)),
        )
        for metric, figure in quality_first(dict(tuned), metrics).items()
    ]
    return table(("metric", "base", "tuned", "difference", ""), rows, left=5)


def show_slices(out: Console, result: EvaluationResult) -> None:
    """Print the figures of each slice of the held-out examples, the strongest evidence of being worse first."""

    for name, column in result.slices.items():
        metric = column.metric
        if metric is None or not column.slices:
            continue
        measured = [(group, group.tuned[metric]) for group in column.slices if has_value(group.tuned.get(metric))]
        lead = f"{metric} by {name}, strongest evidence of being worse first; gap to all others, p adjusted (Holm):"
        out.print(f"\n{one_line(lead)}")
        rows = [
            (
                group.value,
                f"{group.examples:,}{' (few)' if group.small else ''}",
                plain(group.base.get(metric)),
                with_ends(tuned),
                with_ends(group.gap, sign=True),
                (group.gap and probability(group.gap.p_adjusted).lstrip("p= ")) or "–",
            )
            for group, tuned in measured[:MOST_SLICES]
        ]
        out.print(table((name, "examples", "base", "tuned", "gap", "p"), rows, left=6))
        if (left := len(measured) - MOST_SLICES) > 0:
            out.print(f"{counted(left, 'more slice')} with weaker evidence: see --json")


def show_probes(out: Console, result: EvaluationResult) -> None:
    """Print probes: changed copies of the held-out examples, then other examples."""

    changed = [
        (
            probe.name,
            metric,
            with_ends(result.tuned.get(metric)),
            with_ends(probe.tuned.get(metric)),
            with_ends(change, sign=True),
            verdict(change, no_interval(metric, result.metrics, probe.tuned)),
        )
        for probe in result.probes
        if probe.kind in CHANGED
        for metric, change in list(probe.against.items())[:MOST_METRICS]
    ]
    if changed:
        out.print("\nthe tuned model on the same examples, unchanged and changed:")
        out.print(table(("changed by", "metric", "as they are", "changed", "difference", ""), changed, left=6))
    for probe in result.probes:
        if probe.kind in CHANGED:
            continue
        out.print("\n" + one_line(f"{probe.kind} on {probe.data} ({probe.examples:,} examples):"))
        out.print(figure_table(probe.base, probe.tuned, probe.difference, result.metrics))
        for metric, gap in probe.against.items():
            lead = f"{metric} of the tuned model, training minus held-out"
            meaning = verdict(gap, no_interval(metric, result.metrics, probe.tuned))
            out.print(f"{lead}: {with_ends(gap, sign=True)} {meaning}".rstrip())


def show_matrices(out: Console, result: EvaluationResult) -> None:
    """Print the tuned model's matrices of at most MOST_LABELS labels."""
    from ftengine.api import Matrix

    for display in result.displays.tuned:
        if isinstance(display, Matrix) and len(display.names) <= MOST_LABELS:
            by = f" ({display.row_label} by row, {display.column_label} by column)" if display.row_label else ""
            out.print("\n" + one_line(f"{display.title} of the tuned model{by}:"))
            cells = zip(display.names, display.cells, strict=True)
            rows = [(name, *(f"{count:,}" for count in row)) for name, row in cells]
            out.print(table(("", *display.names), rows))


def verdict(difference: Difference | None, no_interval: str = "no interval") -> str:
    """Return what a difference of tuned and base means, in words; `no_interval` if it has no interval."""
    from ftengine.evaluation import is_beyond_chance, near_end

    if not has_value(difference):
        return ""
    if ends(difference) is None or difference.p is None:
        return no_interval
    if not is_beyond_chance(difference):
        # If few examples changed a proportion, p may show no difference while the interval does.
        return "no difference beyond chance" + (f" ({probability(difference.p)})" if near_end(difference) else "")
    if difference.better is not None:
        word = "better" if difference.better else "worse"
    else:  # the metric does not declare which direction is better
        word = "higher" if difference.value > 0 else "lower"
    return f"{word} ({probability(difference.p)})"


def _with_meaning(metric: Metric | None, figure: Estimate | None) -> str:
    """Return a model's figure, with the meaning that its metric gives to 0."""

    meaning = at_zero(metric, figure)
    return f"{with_ends(figure)} ({meaning})" if meaning else with_ends(figure)
