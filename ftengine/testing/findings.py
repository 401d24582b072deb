"""Checks of audits and rules: their findings can be shown, and are the same in each call."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from ftengine.api import Audit, AuditedData, Display, Finding, Rule
from ftengine.plugins.attribution import each
from ftengine.run.records import RunRecords
from ftengine.testing.checks import Checks, run_checks, skip


def check_audit(
    make: Callable[[], Audit], data: AuditedData, expected_failed_checks: Mapping[str, str] | None = None
) -> None:
    """Check an audit on some data, such as `audited_rows` makes of rows.

    Args:
        make: returns a fresh audit.
        data: the data to look at.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    run_checks(AuditChecks(make, data), expected_failed_checks)


def check_rule(
    make: Callable[[], Rule], run: RunRecords, expected_failed_checks: Mapping[str, str] | None = None
) -> None:
    """Check a rule on the records of a run, such as `stored_runs` has.

    Args:
        make: returns a fresh rule.
        run: the run to judge.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    run_checks(RuleChecks(make, run), expected_failed_checks)


@dataclass
class AuditChecks(Checks):
    """Checks of an audit on some data."""

    make: Callable[[], Audit]
    data: AuditedData

    def what_it_yields_can_be_shown(self) -> None:
        audit = self.make()
        _require_shown(audit, "examine", audit.examine(self.data), (Finding, *get_args(Display)))

    def the_same_data_has_the_same_findings(self) -> None:
        audit = self.make()
        findings = [list(instance.examine(self.data)) for instance in (audit, audit, self.make())]
        assert findings[0] == findings[1] == findings[2], (
            "a second call has other findings: they may only depend on the data; do not store anything between calls"
        )

    def places_are_of_the_data(self) -> None:
        places = {rows.where(i) for rows in self.data.splits.values() for i in range(len(rows))}
        places |= {rows.source for rows in self.data.splits.values()}
        for finding in self.make().examine(self.data):
            for place in finding.places if isinstance(finding, Finding) else ():
                assert any(known_place in place for known_place in places), (
                    f"the place {place!r} is not in the data: take places from `rows.where(number)`"
                )


@dataclass
class RuleChecks(Checks):
    """Checks of a rule on one run."""

    make: Callable[[], Rule]
    run: RunRecords

    def what_it_yields_can_be_shown(self) -> None:
        rule = self.make()
        _require_shown(rule, "judge", rule.judge(self.run), (Finding,))

    def the_same_run_has_the_same_findings(self) -> None:
        rule = self.make()
        findings = [list(instance.judge(self.run)) for instance in (rule, rule, self.make())]
        assert findings[0] == findings[1] == findings[2], "a second call has other findings: use only the run's records"

    def only_records_are_read(self) -> None:
        if self.make().reads_later_files:
            skip("it reads further files, and says so")
        before = list(self.make().judge(self.run))
        with tempfile.TemporaryDirectory() as folder:
            findings = list(self.make().judge(replace(self.run, path=Path(folder))))
            written = list(Path(folder).iterdir())
        assert findings == before, "it has other findings if the run's folder is empty: use only the records"
        assert not written, f"it writes {written[0].name!r} into the run's folder"

    def its_command_is_text(self) -> None:
        command = self.make().view_command(self.run)
        assert isinstance(command, str), f"view_command returns {command!r}: return a command, or an empty text"


def _require_shown(component: Audit | Rule, method: str, returned: Any, allowed: tuple[type[Any], ...]) -> None:
    for finding in each(component, method, returned, allowed):
        if isinstance(finding, Finding):
            assert finding.text.rstrip().endswith((".", "!", "?", "”", ")")), (
                f"a finding is a sentence: {finding.text!r}"
            )
            assert finding.kind, f"a finding has a kind, such as 'data' or 'quality': {finding.text!r}"
