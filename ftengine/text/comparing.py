"""Normal forms of texts, so that texts that look the same compare as equal."""

import re
import unicodedata
from typing import Any

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Characters of Chinese and Japanese, for use inside [] of a regular expression. These are written without blanks, so
each character counts as a word."""

# Code points with Unicode's property Default_Ignorable_Code_Point (DerivedCoreProperties.txt, 16.0): zero-width and
# bidirectional marks, soft hyphens, variation selectors. Tags after a black flag are kept: they name its region.
_INVISIBLE = re.compile(
    r"(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]+\U000e007f)|"
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def comparable(value: Any) -> Any:
    """Return text in Unicode's form NFC, without invisible characters such as U+200B.

    In lists and mappings (with their keys) every text is changed; other values are returned unchanged. Use it only to
    compare: invisible characters may matter to readers (Persian, emoji) and to tokenizers.
    """
    if isinstance(value, str):
        return value if value.isascii() else unicodedata.normalize("NFC", _INVISIBLE.sub(r"\1", value))
    if isinstance(value, dict):
        return {comparable(key): comparable(item) for key, item in value.items()}
    return [comparable(item) for item in value] if isinstance(value, (list, tuple)) else value
