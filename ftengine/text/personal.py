"""Likely personal data in text, recognised by its form, so both misses and false alarms are possible.

Engine and command line redact output for people: terminal, reports and the readable files of a run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

PERSONAL = {
    "email": "e-mail addresses",
    "phone": "telephone numbers",
    "card": "payment card numbers",
    "iban": "bank accounts (IBAN)",
}

_EMAIL = re.compile(r"[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w@])")
# Blanks; non-breaking ones are written as escapes.
_BLANK = r"[ \u00a0\u2007\u202f]"
_BLANKS = re.compile(_BLANK)
_IBAN = re.compile(
    rf"(?<![A-Za-z0-9])[A-Z]{{2}}\d{{2}}(?:{_BLANK}?[A-Z0-9]{{4}}){{2,7}}(?:{_BLANK}?[A-Z0-9]{{1,3}})?(?![A-Za-z0-9])"
)
_CARD = re.compile(r"\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{5}")
# Long runs of digits with separators between them.
_DIGITS = re.compile(r"(?<![\w.,/-])(?:\+|\()?\d(?:[ \u00a0\u2007\u202f()./-]{0,3}\d){6,18}(?![\w%])")
_ISSUER = re.compile(
    r"""4(?:\d{12}|\d{15}|\d{18})                                                # Visa
      | (?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}      # Mastercard
      | 3[47]\d{13}                                                              # American Express
      | (?:6011|64[4-9]\d|65\d{2})\d{12,15}                                      # Discover
      | 3(?:0[0-59]|[689]\d)\d{11,16}                                            # Diners Club
      | 35(?:2[89]|[3-8]\d)\d{12,15}                                             # JCB
      | 62\d{14,17}                                                              # UnionPay
      | (?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}                        # Maestro
      | 220[0-4]\d{12,15}                                                        # Mir
    """,
    re.VERBOSE,
)
"""First digits and lengths of the large issuers. The check digit alone would accept every tenth number."""
_REGIONS = ("US", "GB", "DE", "FR")
"""Countries whose national telephone numbers are recognised; international numbers are recognised for all countries."""
_GAP = r"[\s#▁Ġ]*"
"""Characters that a tokenizer may insert into decoded text: "jane. doe @ example. org"."""


def find_personal(text: str) -> Iterator[tuple[str, str]]:
    """Yield (a key of `PERSONAL`, the value as it stands in the text)."""
    for kind, match in _matches(text):
        yield kind, match.group()


def _matches(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield "email", match
    for match in _DIGITS.finditer(text):
        value = _BLANKS.sub(" ", match.group())
        if _is_card(value):
            yield "card", match
        elif _is_phone(value):
            yield "phone", match
    for match in _IBAN.finditer(text):
        if _is_iban(_BLANKS.sub("", match.group())):
            yield "iban", match


def _is_card(value: str) -> bool:
    """Check a number's form, its issuer, and its last digit (ISO/IEC 7812-1)."""
    from stdnum import luhn

    digits = re.sub(r"\D", "", value)
    return bool(_CARD.fullmatch(value) and _ISSUER.fullmatch(digits)) and luhn.is_valid(digits)


def _is_phone(value: str) -> bool:
    """Check a number against the numbering plans, but not plain digits, nor two numbers such as "713.816 (1645"."""
    if value.isdigit() or ("(" in value[1:] and ")" not in value):
        return False
    from phonenumbers import Leniency, PhoneNumberMatcher

    regions = (None,) if value.startswith("+") else _REGIONS
    return any(PhoneNumberMatcher(value, region, Leniency.STRICT_GROUPING).has_next() for region in regions)


def _is_iban(value: str) -> bool:
    """Check an account's length in its country and its remainder of 97 (ISO 13616)."""
    from stdnum import iban

    return bool(iban.is_valid(value))


def redact(text: str, also: Iterable[str] = ()) -> str:
    """Return a text with likely personal data and the values in `also` redacted.

    Values in `also` are recognised in any case and with any spaces that a tokenizer inserted.
    """
    return redact_pieces([(text, False)], also)[0][0]


def redact_pieces(pieces: Sequence[tuple[str, bool]], also: Iterable[str] = ()) -> list[tuple[str, bool]]:
    """Redact a text in (text, is target) pieces, including values that pieces divide."""
    also, result = list(also), list(pieces)
    for side in (False, True):
        places = [i for i, (_, target) in enumerate(pieces) if target is side]
        joined = "".join(pieces[i][0] for i in places)
        spans, start = _spans(joined, also), 0
        for i in places if spans else ():
            end = start + len(pieces[i][0])
            result[i] = _redacted_between(joined, spans, start, end), side
            start = end
    return result


def redact_json(value: Any, also: Iterable[str] = ()) -> Any:
    """Return a JSON value with likely personal data redacted in all its texts, keys included."""
    also = list(also)
    if isinstance(value, str):
        return redact(value, also)
    if isinstance(value, Mapping):
        shown = redacted_names(map(str, value), also)
        return {shown[str(key)]: redact_json(inner, also) for key, inner in value.items()}
    return [redact_json(inner, also) for inner in value] if isinstance(value, (list, tuple)) else value


def redact_short(value: Any) -> str:
    """Return a value as redacted JSON of at most 60 characters, to quote it in a message."""
    try:
        # Redact before cutting, as half of a value is not recognised.
        text = redact(json.dumps(value, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode())
    except RecursionError:
        return "deeply nested lists"
    return text if len(text) <= 60 else text[:57] + "..."


def redacted_names(names: Iterable[str], also: Iterable[str] = ()) -> dict[str, str]:
    """Return the redacted form of each name; different names stay different, the second as "j…om (2)"."""
    also, shown, taken = list(also), {}, set()
    for name in dict.fromkeys(names):
        text, number = redact(name, also), 1
        while (candidate := text if number == 1 else f"{text} ({number})") in taken:
            number += 1
        taken.add(candidate)
        shown[name] = candidate
    return shown


def _spans(text: str, also: Iterable[str]) -> list[tuple[int, int]]:
    """Return the (start, end) of values in order; overlapping ones are merged."""
    spans = [match.span() for _, match in _matches(text)]
    for value in also:
        pattern = _GAP.join(re.escape(character) for character in "".join(value.split()))
        spans += [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _redacted_between(text: str, spans: Sequence[tuple[int, int]], start: int, end: int) -> str:
    """Return a part of a text with values redacted to first and last characters, "j…om", where they begin."""
    parts, at = [], start
    for first, last in spans:
        if last <= start or first >= end:
            continue
        parts.append(text[at : max(first, start)])
        if first >= start:
            parts.append(f"{text[first]}…{text[first:last][-2:]}")
        at = min(last, end)
    return "".join([*parts, text[at:end]])
