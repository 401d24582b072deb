"""The verdict: what the registered rules find in a run's records, causes before what they explain."""

from __future__ import annotations

from collections.abc import Sequence

from ftengine.api import Finding, Rule
from ftengine.api.display import LEVELS
from ftengine.errors import PluginError
from ftengine.plugins.attribution import cause_in, each, named, without
from ftengine.plugins.registry import Registry
from ftengine.run.records import RunRecords, Verdict
from ftengine.text import capitalized, uncapitalized

UNJUDGED = Finding(kind="quality", level="note", text="No rule judged the quality of this run.")


def judge(run: RunRecords, registry: Registry | None = None) -> Verdict:
    """Return the verdict on a run, by the rules of a registry or of all installed plugins."""
    findings = list[Finding]()
    for rule in sorted((registry or Registry()).build_all("rule"), key=lambda rule: rule.order):
        for finding in _found(rule, run):
            findings.append(finding if finding.source else finding.model_copy(update={"source": rule.name}))
    findings.sort(key=_gravity)
    quality = next((one for one in findings if one.kind == "quality"), UNJUDGED)
    first = _first(quality, findings)
    lead = [quality] if first is None else [first, quality]
    rest = [one for one in findings if all(one is not other for other in lead)]
    rest = sorted((_explained(one, findings) for one in rest), key=lambda one: one.explained_by != "")
    alarm = any(one.level == "alarm" and not one.explained_by for one in (*lead, *rest))
    return Verdict(
        headline=_headline(lead),
        level="alarm" if alarm else min(lead, key=_gravity).level,
        findings=(*(_explained(one, findings) for one in lead), *rest),
    )


def _found(rule: Rule, run: RunRecords) -> list[Finding]:
    """Return a rule's findings (PluginError: it ends the process, which without a verdict is no success)."""
    try:
        return list(each(rule, "judge", rule.judge(run), Finding))
    except SystemExit as error:
        raise PluginError(f"{named(rule)} ends the process: {cause_in(rule, error)}.{without(rule)}") from error


def _gravity(finding: Finding) -> int:
    return LEVELS.index(finding.level)


def _first(quality: Finding, findings: Sequence[Finding]) -> Finding | None:
    """Return what leads the headline before quality: its cause, or an alarm that is worse; None: quality itself does.

    A cause that is a note stands behind an alarm about anything else.
    """
    cause = _cause(quality, findings)
    if quality.level == "alarm" or (cause is not None and cause.level == "alarm"):
        return cause
    alarms = [one for one in findings if one.level == "alarm" and _cause(one, findings) is None]
    return alarms[0] if alarms else cause


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


def _headline(lead: Sequence[Finding]) -> str:
    """Return one judgement in a sentence: of quality, or the cause of it, or the alarm in spite of it.

    That of quality begins with the figures of tuned model and base, and its `brief` is these figures.
    """
    *before, quality = lead
    if not before:
        return quality.text
    first = before[0].brief or before[0].text.removesuffix(".")
    if not quality.brief:
        return f"{capitalized(first)}. {quality.text}"
    if "quality" in before[0].explains:
        return f"{capitalized(first)}; {quality.brief}."
    return f"{capitalized(quality.brief)}, but {before[0].brief or uncapitalized(first)}."
