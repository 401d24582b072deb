"""Checks of audits and rules: what they find can be shown, and is the same each time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from ftengine.api import Audit, AuditedData, Display, Finding, Rule
from ftengine.run.records import RunRecords
from ftengine.testing.checks import methods, run_checks


def check_audit(
    make: Callable[[], Audit], data: AuditedData, expected_failed_checks: Mapping[str, str] | None = None
) -> None:
    """Check an audit on some data, such as `audited_rows` makes of rows.

    Args:
        make: returns a fresh audit.
        data: what it looks at.
        expected_failed_checks: names of checks that fail, with reasons.

    Raises:
        AssertionError: as `check_strategy`.
    """
    run_checks(audit_checks(make, data), expected_failed_checks)


def audit_checks(
    make: Callable[[], Audit], data: AuditedData, on: str = ""
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the checks of an audit on some data."""
    return methods(_AuditChecks(make, data), on)


def check_rule(
    make: Callable[[], Rule], run: RunRecords, expected_failed_checks: Mapping[str, str] | None = None
) -> None:
    """Check a rule on the records of a run, such as `stored_runs` has.

    Args:
        make: returns a fresh rule.
        run: what it judges.
        expected_failed_checks: names of checks that fail, with reasons.

    Raises:
        AssertionError: as `check_strategy`.
    """
    run_checks(rule_checks(make, run), expected_failed_checks)


def rule_checks(make: Callable[[], Rule], run: RunRecords, on: str = "") -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the checks of a rule on one run."""
    return methods(_RuleChecks(make, run), on)


class _AuditChecks:
    def __init__(self, make: Callable[[], Audit], data: AuditedData) -> None:
        self._make, self._data = make, data

    def what_it_yields_can_be_shown(self) -> None:
        _require_shown(self._make().look(self._data), "look", (Finding, *get_args(Display)))

    def the_same_data_has_the_same_findings(self) -> None:
        audit = self._make()
        found = [list(one.look(self._data)) for one in (audit, audit, self._make())]
        assert found[0] == found[1] == found[2], (
            "a second look finds something else: findings depend on the data alone, and nothing is kept between calls"
        )

    def places_are_of_the_data(self) -> None:
        known = {rows.where(i) for rows in self._data.splits.values() for i in range(len(rows))}
        known |= {rows.source for rows in self._data.splits.values()}
        for finding in self._make().look(self._data):
            for place in finding.places if isinstance(finding, Finding) else ():
                assert any(one in place for one in known), (
                    f"the place {place!r} is none of the data: take places from `rows.where(number)`"
                )


class _RuleChecks:
    def __init__(self, make: Callable[[], Rule], run: RunRecords) -> None:
        self._make, self._run = make, run

    def what_it_yields_can_be_shown(self) -> None:
        _require_shown(self._make().judge(self._run), "judge", (Finding,))

    def the_same_run_has_the_same_findings(self) -> None:
        rule = self._make()
        found = [list(one.judge(self._run)) for one in (rule, rule, self._make())]
        assert found[0] == found[1] == found[2], (
            "a second call finds something else: findings depend on the run's records alone"
        )

    def only_records_are_read(self) -> None:
        before = list(self._make().judge(self._run))
        with tempfile.TemporaryDirectory() as folder:
            elsewhere = RunRecords(**{**vars_of(self._run), "path": Path(folder)})
            found = list(self._make().judge(elsewhere))
            written = list(Path(folder).iterdir())
        assert found == before, "it finds something else where the run's folder is empty: go by the records alone"
        assert not written, f"it writes {written[0].name!r} into the run's folder"


def vars_of(run: RunRecords) -> dict[str, Any]:
    """Return what a run's records were made of."""
    return {name: getattr(run, name) for name in run.__dataclass_fields__}


def _require_shown(found: Any, method: str, allowed: tuple[type, ...]) -> None:
    """Raise AssertionError where something is yielded that cannot be shown."""
    names = " and ".join(f"ftengine.api.{kind.__name__}" for kind in allowed[:1])
    assert isinstance(found, Iterable), f"{method} returns {found!r}; it must yield objects of {names}"
    for one in found:
        kind = type(one).__name__
        assert isinstance(one, allowed), (
            f"{method} yields a {kind}, {str(one)[:80]!r}; it must yield objects of {names}"
        )
        if isinstance(one, Finding):
            assert one.text.rstrip().endswith((".", "!", "?", "”", ")")), f"a finding is a sentence: {one.text!r}"
            assert one.kind, f"a finding has a kind, such as 'data' or 'quality': {one.text!r}"
