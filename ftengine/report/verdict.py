"""The verdict: what a run came to in plain words, each word tied to a figure. A pure function of the run's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ftengine.report.files import RunFiles
from ftengine.report.findings import data, fitting, probes, quality, slices
from ftengine.report.findings.finding import Finding
from ftengine.report.words import listed

CHECKS: tuple[Callable[[RunFiles], Iterable[Finding]], ...] = (
    quality.trivial,
    quality.unanswered,
    fitting.over_fitting,
    fitting.generalisation,
    fitting.learning,
    data.leaks,
    data.wrong_labels,
    data.contradictions,
    slices.slices,
    quality.worse,
    probes.probes,
    quality.calibration,
    data.duplicates,
    quality.held_out,
    data.truncated,
    data.personal,
)
"""What is looked for, in the order in which a reader should learn of it."""

ORDER = {"alarm": 0, "note": 1, "good": 2}


def judge(files: RunFiles) -> dict[str, Any]:
    """Return the verdict on a run, as verdict.json holds it.

    Returns:
        "headline" (a sentence: better than the base or not, and what is alarming), "level" (of the headline: "good",
        "note" or "alarm"), and "findings", the alarms first: of each kind, level, text and figures.
    """
    first = quality.headline(files)
    found = [finding for check in CHECKS for finding in check(files)]
    found.sort(key=lambda finding: ORDER[finding.level])
    kinds = list(dict.fromkeys(finding.kind for finding in found if finding.level == "alarm"))
    headline, level = first.text, first.level
    if kinds:
        headline += f" But look at {listed([NAMES.get(kind, kind) for kind in kinds])} before you rely on it."
        level = "alarm"
    return {"headline": headline, "level": level, "findings": [finding.to_json() for finding in (first, *found)]}


NAMES = {
    "baseline": "the constant answer",
    "classes": "the classes",
    "over-fitting": "the over-fitting",
    "learning": "the training",
    "labels": "the labels",
    "data": "the data",
    "slices": "the slices",
    "forgetting": "the forgetting",
    "robustness": "the robustness",
    "memorisation": "what was learnt by heart",
    "refusal": "the refusals",
    "calibration": "the confidence",
}
"""Kinds of findings as a sentence names them."""
