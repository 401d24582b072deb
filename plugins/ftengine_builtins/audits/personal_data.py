"""Audit `personal-data`."""

from __future__ import annotations

from collections.abc import Iterator

from ftengine.api import PERSONAL, Audit, AuditedData, Finding, find_personal
from ftengine_builtins.audits.counting import finding, matching


class PersonalData(Audit):
    """E-mail addresses, telephone numbers, payment cards and bank accounts, found by their form."""

    name = "personal-data"

    def look(self, data: AuditedData) -> Iterator[Finding]:
        """Yield a finding for each kind that occurs; values are named nowhere."""
        found = matching(data, lambda text: {kind for kind, _ in find_personal(text)})
        for kind, values in PERSONAL.items():
            if kind in found:
                yield finding(data, found[kind], f"hold what looks like {values}", kind)
