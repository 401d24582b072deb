"""The verdict: what the registered rules find in a run's records."""

from __future__ import annotations

from collections.abc import Sequence

from ftengine.api import Finding
from ftengine.api.display import LEVELS
from ftengine.plugins.registry import Registry
from ftengine.plugins.returned import each
from ftengine.run.records import RunRecords, Verdict
from ftengine.text import listed

UNJUDGED = Finding(kind="quality", level="note", text="No rule judged the quality of this run.")


def judge(run: RunRecords, registry: Registry | None = None) -> Verdict:
    """Return the verdict on a run, by the rules of a registry or of all installed plugins."""
    found = []
    for rule in sorted((registry or Registry()).build_all("rule"), key=lambda rule: rule.order):
        for finding in each(rule, "judge", rule.judge(run), Finding):
            sourced = finding if finding.source else finding.model_copy(update={"source": rule.name})
            found.append((sourced, rule.about or finding.kind))
    found.sort(key=lambda pair: LEVELS.index(pair[0].level))
    first = next((pair for pair in found if pair[0].kind == "quality"), (UNJUDGED, ""))
    rest = [pair for pair in found if pair is not first]
    alarms = [about for finding, about in rest if finding.level == "alarm"]
    head, _ = first
    return Verdict(
        headline=_headline(head, alarms),
        level="alarm" if alarms else head.level,
        findings=(head, *(finding for finding, _ in rest)),
    )


def _headline(first: Finding, alarms: Sequence[str]) -> str:
    """Return the finding's text behind what the alarms are about, or before that where it is an alarm itself."""
    if not alarms:
        return first.text
    further = "further " if first.level == "alarm" else ""
    count = f"One {further}alarm" if len(alarms) == 1 else f"{len(alarms):,} {further}alarms"
    told = f"{count}, about {listed(list(dict.fromkeys(alarms)))}."
    return f"{first.text} {told}" if further else f"{told} {first.text}"
