"""Audit `mojibake`."""

from __future__ import annotations

from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Finding
from ftengine_builtins.audits.counting import finding, matching

REPLACEMENT = "\ufffd"


class Mojibake(Audit):
    """Text that was decoded wrongly: UTF-8 read as Latin-1 and the like, found by ftfy, and replacement characters."""

    name = "mojibake"

    def look(self, data: AuditedData) -> Iterator[Finding]:
        """Yield a finding for garbled text, and one for replacement characters."""
        found = matching(data, kinds_of)
        if "garbled" in found:
            yield finding(data, found["garbled"], "hold text in a wrong encoding, such as 'Ã©' for 'é'")
        if "replaced" in found:
            what = f"hold the replacement character {REPLACEMENT}, left by a wrong decoding"
            yield finding(data, found["replaced"], what)


def kinds_of(text: str) -> Iterator[str]:
    """Yield "garbled" and "replaced" where a text is."""
    if text.isascii():
        return
    if REPLACEMENT in text:
        yield "replaced"
    if is_garbled(text):
        yield "garbled"


def is_garbled(text: str) -> bool:
    """Say whether ftfy can read text back as what it was before a wrong decoding (Speer 2019, "ftfy")."""
    import ftfy

    steps = ftfy.fix_encoding_and_explain(text).explanation
    return any(step.action == "decode" for step in steps or ())
