"""How the checks' own tests look at what came of a component."""

from __future__ import annotations

from ftengine.testing import check_results


def failed(cls, **options):
    """Return the checks that a class fails, with the reasons."""
    return {one.check: one.reason for one in check_results(cls, **options) if one.outcome == "failed"}


def require(cls, expected, **options):
    """Fail unless exactly these checks fail, each with a reason that holds a text: {check: text}."""
    found = failed(cls, **options)
    assert found.keys() == expected.keys(), found
    assert [check for check, text in expected.items() if text not in found[check]] == [], found
