"""The verdict: findings of the registered rules on a run's records, causes before their effects."""

from __future__ import annotations

from collections.abc import Sequence

from ftengine.api import Finding, Listener, Rule
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
    for rule in _rules(registry):
        findings += _findings_of(rule, run)
    findings.sort(key=_gravity)
    quality = next((finding for finding in findings if finding.kind == "quality"), UNJUDGED)
    first = _first(quality, findings)
    lead = [quality] if first is None else [first, quality]
    reason = _cause(quality, findings)  # where it is a note, it is the first of those that follow
    rest = [finding for finding in findings if all(finding is not other for other in lead)]
    rest.sort(key=lambda finding: finding is not reason)
    rest = sorted((_explained(finding, findings) for finding in rest), key=lambda finding: finding.explained_by != "")
    alarm = any(finding.level == "alarm" and not finding.explained_by for finding in (*lead, *rest))
    return Verdict(
        headline=_headline(lead),
        level="alarm" if alarm else min(lead, key=_gravity).level,
        findings=(*([quality] if first is None else [_explained(finding, findings) for finding in lead]), *rest),
    )


def later_findings(run: RunRecords, verdict: Verdict, registry: Registry | None = None) -> list[Finding]:
    """Return what rules that read later files find now and did not find when the verdict was made."""
    known = {(finding.source, finding.level, finding.text) for finding in verdict.findings}
    return [
        finding
        for rule in _rules(registry)
        if rule.reads_later_files
        for finding in _findings_of(rule, run)
        if (finding.source, finding.level, finding.text) not in known
    ]


def view_commands(run: RunRecords, registry: Registry, listener: Listener) -> list[str]:
    """Return the commands by which people add to what rules judge; report a rule that fails."""
    commands: list[str] = []
    for rule in _rules(registry):
        try:
            commands += filter(None, [rule.view_command(run)])
        # The run is complete even if a third-party rule raises.
        except (Exception, SystemExit) as error:
            listener.message(f"{named(rule)} failed: {cause_in(rule, error)}")
    return commands


def _rules(registry: Registry | None) -> list[Rule]:
    return sorted((registry or Registry()).build_all("rule"), key=lambda rule: rule.order)


def _findings_of(rule: Rule, run: RunRecords) -> list[Finding]:
    """Return a rule's findings, with its name as their source where they have none.

    Raises:
        PluginError: the rule ends the process, even with status 0.
    """
    try:
        findings = list(each(rule, "judge", rule.judge(run), Finding))
    except SystemExit as error:
        raise PluginError(f"{named(rule)} ends the process: {cause_in(rule, error)}.{without(rule)}") from error
    return [finding if finding.source else finding.model_copy(update={"source": rule.name}) for finding in findings]


def _gravity(finding: Finding) -> int:
    return LEVELS.index(finding.level)


def _first(quality: Finding, findings: Sequence[Finding]) -> Finding | None:
    """Return the alarm that joins quality in the headline: its cause, or another one; None if there is none."""
    cause = _cause(quality, findings)
    if quality.level == "alarm" or (cause is not None and cause.level == "alarm"):
        return cause
    alarms = (finding for finding in findings if finding.level == "alarm" and _cause(finding, findings) is None)
    return next(alarms, None)


def _cause(finding: Finding, findings: Sequence[Finding]) -> Finding | None:
    """Return the first finding that explains this one, preferably an unexplained one; None if there is none."""
    causes = [candidate for candidate in findings if _explains(candidate, finding)]
    return min(causes, key=lambda candidate: any(_explains(other, candidate) for other in findings), default=None)


def _explains(cause: Finding, other: Finding) -> bool:
    if cause is other or other.kind not in cause.explains or cause.level not in ("alarm", other.level):
        return False
    return cause.kind not in other.explains or other.kind == "quality"  # quality is an effect rather than a cause


def _explained(finding: Finding, findings: Sequence[Finding]) -> Finding:
    """Return the finding with its `explained_by`; a second alarm about quality has none."""
    cause = _cause(finding, findings)
    if cause is None or (finding.kind, finding.level) == ("quality", "alarm"):
        return finding
    return finding.model_copy(update={"explained_by": cause.source})


def _headline(lead: Sequence[Finding]) -> str:
    """Return the headline: the finding of quality alone, after its cause, or followed by another alarm.

    A finding of quality begins with the figures of tuned model and base; its `brief` is only these figures.
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
