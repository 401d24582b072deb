"""The verdict: what the registered rules find in a run's records."""

from __future__ import annotations

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
    first = next((finding for finding in found if finding.kind == "quality"), None)
    if first is None:
        first = Finding(kind="quality", level="note", text="No rule judged the quality of this run.")
    rest = sorted((one for one in found if one is not first), key=lambda one: LEVELS.index(one.level))
    alarms = list(dict.fromkeys(one.kind for one in rest if one.level == "alarm"))
    headline = f"{first.text} Alarms: {listed(alarms)}." if alarms else first.text
    return Verdict(headline=headline, level="alarm" if alarms else first.level, findings=(first, *rest))
