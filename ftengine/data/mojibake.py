"""UTF-8 that was read as Latin-1 or Windows-1252: found by reading it back."""

from __future__ import annotations

import re

# Bytes that are no ASCII, by the character that either encoding shows.
_BYTES = {chr(byte): byte for byte in range(0x80, 0x100)}
_BYTES |= {bytes([b]).decode("cp1252"): b for b in range(0x80, 0xA0) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
_RUN = re.compile(f"[{re.escape(''.join(_BYTES))}]+")
_MAY_FOLLOW = frozenset("‘’“”…–—»›™\u00a0")
"""Signs that follow a letter in good text as well: "CAFÉ…" could be read back too."""
_FEW = re.compile(
    "[\u0080-\u017f"  # Latin letters with accents, and signs: Ã©, Å¡, Â°
    "\u2010-\u2044\u20a0-\u20bf\u2100-\u214f\u2190-\u27bf"  # quotes, dashes, currencies, arrows: â€™, â‚¬, â†’
    "\ufb00-\ufb06\ufeff\ufffd]"  # ligatures, a byte order mark, the replacement character: ï¬\u0081, ï»¿, ï¿½
)
"""What often stands alone between ASCII; other single characters (Úž, é»\u00a0) are read back by chance."""


def is_mojibake(text: str) -> bool:
    """Say whether a text holds UTF-8 that was read as Latin-1 or Windows-1252.

    Two characters in a row that can be read back are enough, or one beyond the 16-bit plane (most emoji). A single one
    must be a likely one; where a sign that may follow any letter is part of it, everything in the text must be readable
    so, and no capital stand before it ("AMANHÃ…").
    """
    doubtful, whole = False, True
    for match in _RUN.finditer(text):
        run = match.group()
        found = _read_back(run)
        if found is None:
            whole = False
        elif len(found) > 1 or ord(found) > 0xFFFF:
            return True
        elif _FEW.fullmatch(found):
            if run[1] not in _MAY_FOLLOW:
                return True
            doubtful |= not text[max(0, match.start() - 1) : match.start()].isupper()
    return doubtful and whole


def _read_back(run: str) -> str | None:
    try:
        return bytes(map(_BYTES.__getitem__, run)).decode()
    except UnicodeDecodeError:
        return None
