"""How the checks' own tests look at what came of a component."""

from __future__ import annotations

from ftengine.testing import check_results


def failed(cls, **options):
    """Return the checks that a class fails, with the reasons."""
    return {result.check: result.reason for result in check_results(cls, **options) if result.outcome == "failed"}


def variant(base, **members):
    """Return a subclass of a component whose members are the fault."""
    return type("Variant", (base,), {"__doc__": "A fault.", **members})
