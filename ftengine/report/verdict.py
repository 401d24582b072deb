"""The verdict: what the registered rules find in a run's records."""

from __future__ import annotations

from collections.abc import Sequence

from ftengine.api import Finding
from ftengine.api.figures import listed
from ftengine.plugins.registry import Registry
from ftengine.run.records import RunRecords, Verdict

LEVELS = ("alarm", "note", "good")


def judge(run: RunRecords, registry: Registry | None = None) -> Verdict:
    """Return the verdict on a run.

    Args:
        run: its records.
        registry: the rules; by default those of all installed plugins.
    """
    found = []
    for rule in sorted((registry or Registry()).build_all("rule"), key=lambda rule: rule.order):
        for finding in rule.judge(run):
            found.append(finding if finding.source else finding.model_copy(update={"source": rule.name}))
    first = min((one for one in found if one.kind == "quality"), key=_badness, default=None)
    if first is None:
        first = Finding(kind="quality", level="note", text="No rule judged the quality of this run.")
    rest = sorted((one for one in found if one is not first), key=_badness)
    alarms = list(dict.fromkeys(one.kind for one in rest if one.level == "alarm"))
    return Verdict(headline=_headline(first, alarms), level="alarm" if alarms else first.level, findings=(first, *rest))


def _badness(finding: Finding) -> int:
    return LEVELS.index(finding.level)


def _headline(first: Finding, alarms: Sequence[str]) -> str:
    """Return the finding's text behind the kinds of the alarms, or before them where it is an alarm itself."""
    if not alarms:
        return first.text
    if first.level == "alarm":
        return f"{first.text} Further alarms: {listed(alarms)}."
    return f"{'Alarm' if len(alarms) == 1 else 'Alarms'} ({', '.join(alarms)}). {first.text}"
