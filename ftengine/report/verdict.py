"""The verdict: what the registered rules find in a run's records, causes before what they explain."""

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
    findings, abouts = list[Finding](), dict[str, str]()
    for rule in sorted((registry or Registry()).build_all("rule"), key=lambda rule: rule.order):
        for finding in each(rule, "judge", rule.judge(run), Finding):
            sourced = finding if finding.source else finding.model_copy(update={"source": rule.name})
            findings.append(sourced)
            abouts[sourced.source] = rule.about or sourced.kind
    findings.sort(key=_gravity)
    quality = next((one for one in findings if one.kind == "quality"), UNJUDGED)
    cause = _cause(quality, findings)
    lead = [quality] if cause is None else [cause, quality]
    rest = [one for one in findings if all(one is not first for first in lead)]
    rest = sorted((_explained(one, findings) for one in rest), key=lambda one: one.explained_by != "")
    alarms = [abouts[one.source] for one in rest if one.level == "alarm" and not one.explained_by]
    return Verdict(
        headline=_headline(lead, alarms),
        level="alarm" if alarms else min(lead, key=_gravity).level,
        findings=(*(_explained(one, findings) for one in lead), *rest),
    )


def _gravity(finding: Finding) -> int:
    return LEVELS.index(finding.level)


def _cause(finding: Finding, findings: Sequence[Finding]) -> Finding | None:
    """Return the first finding that explains one, before those that are explained themselves; None: there is none."""
    causes = [one for one in findings if _explains(one, finding)]
    return min(causes, key=lambda one: any(_explains(other, one) for other in findings), default=None)


def _explains(one: Finding, other: Finding) -> bool:
    if one is other or other.kind not in one.explains or one.level not in ("alarm", other.level):
        return False
    return one.kind not in other.explains or other.kind == "quality"  # which is an effect rather than a cause


def _explained(finding: Finding, findings: Sequence[Finding]) -> Finding:
    """Return the finding with what explains it; a second alarm about quality stands for itself."""
    cause = _cause(finding, findings)
    if cause is None or (finding.kind, finding.level) == ("quality", "alarm"):
        return finding
    return finding.model_copy(update={"explained_by": cause.source})


def _headline(lead: Sequence[Finding], alarms: Sequence[str]) -> str:
    """Return what to do and what it mends, or the one finding of quality; and what further alarms are about.

    These stand before that of a single finding that is no alarm itself, else behind.
    """
    *causes, quality = lead
    text = quality.text
    if causes:
        cause = causes[0].brief and f"{causes[0].brief[:1].upper()}{causes[0].brief[1:]}."
        effect = f"So far {quality.brief}." if quality.brief else text
        text = f"{cause or causes[0].text} {effect}"
    if not alarms:
        return text
    further = "further " if lead[0].level == "alarm" else ""
    count = f"One {further}alarm" if len(alarms) == 1 else f"{len(alarms):,} {further}alarms"
    others = f"{count}, about {listed(list(dict.fromkeys(alarms)))}."
    return f"{text} {others}" if further else f"{others} {text}"
