"""docs/what-now.md has what to do about every finding that can lead a verdict."""

import inspect
import sys

import pytest
from docs_commands import ROOT, code, tables

from ftengine.plugins.registry import Registry

PAGE = ROOT / "docs" / "what-now.md"


@pytest.fixture(scope="module")
def rows():
    return [row for table in tables(PAGE) if table.heading != "What now" for row in table.rows]


def can_lead():
    """Return the rules in the box, and the audits in whose modules an alarm is raised: these rules repeat."""
    classes = [(kind, entry.cls) for kind in ("rule", "audit") for entry in Registry().entries(kind)]
    own = [(kind, cls) for kind, cls in classes if cls.__module__.startswith("ftengine_builtins.")]
    return {
        cls.name for kind, cls in own if kind == "rule" or '"alarm"' in inspect.getsource(sys.modules[cls.__module__])
    }


def test_every_rule_and_every_audit_that_alarms_has_what_to_do(rows):
    named = {name for row in rows for name in code(row[0])}
    assert can_lead() <= named
    assert named <= {entry.cls.name for kind in ("rule", "audit") for entry in Registry().entries(kind)}


def test_every_row_says_what_it_means_and_what_to_do(rows):
    assert [row for row in rows if len(row) != 4 or not all(row)] == []
