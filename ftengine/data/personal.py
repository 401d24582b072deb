"""Likely personal data in text: found by its form, so both misses and false alarms are possible.

E-mail addresses and telephone numbers have no check digit; payment cards and IBANs do (ISO/IEC 7812-1, ISO 13616),
and only numbers that pass are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

KINDS = {
    "email": "e-mail addresses",
    "phone": "telephone numbers",
    "card": "payment card numbers",
    "iban": "bank accounts (IBAN)",
}

_EMAIL = re.compile(r"[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w@])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_CARD = re.compile(r"\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{5}")
# Long runs of digits with separators between them; what they are is told by their grouping.
_DIGITS = re.compile(r"(?<![\w.,/-])(?:\+|\()?\d(?:[ ()./-]{0,3}\d){6,18}(?![\w%])")
_PHONE = re.compile(
    r"""\+[1-9]\d{0,2}[ ./-]?(?:[ (]{0,2}\d{1,7}[ )./-]{0,2}){2,6}    # international: +44 (0)20 7946 0958
      | \(0?\d{2,4}\)[ ]?\d{3,4}[ -]?\d{3,5}                       # an area in brackets: (020) 7946 0958
      | 0\d{2,4}[ /-]\d{3,8}(?:[ -]\d{2,4}){0,2}                   # a national trunk prefix: 020 7946 0958
      | (?:1[ .-])?[2-9]\d{2}([ .-])\d{3}\1\d{4}                   # North American: 212-555-0123
    """,
    re.VERBOSE,
)


def find_personal(text: str) -> Iterator[tuple[str, str]]:
    """Yield (a key of `KINDS`, the value as it stands in the text)."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield "email", match.group()
    for match in _DIGITS.finditer(text):
        value = match.group()
        digits = re.sub(r"\D", "", value)
        if _CARD.fullmatch(value) and passes_luhn(digits):
            yield "card", value
        elif 8 <= len(digits) <= 15 and _PHONE.fullmatch(value):  # E.164: 15 digits at most
            yield "phone", value
    for match in _IBAN.finditer(text):
        if passes_iban(match.group().replace(" ", "")):
            yield "iban", match.group()


def passes_luhn(digits: str) -> bool:
    """Check a number's last digit by the Luhn formula; a number of zeros is none."""
    doubled = [int(x) * 2 for x in digits[-2::-2]]
    total = sum(map(int, digits[::-2])) + sum(x - 9 if x > 9 else x for x in doubled)
    return total % 10 == 0 and len(set(digits)) > 1


def passes_iban(value: str) -> bool:
    """Check an IBAN's length and its remainder of 97."""
    return 15 <= len(value) <= 34 and int("".join(str(int(x, 36)) for x in value[4:] + value[:4])) % 97 == 1


def masked(value: str) -> str:
    """Return a value's first character and its last two: "j…om"; what lies between is not shown."""
    return f"{value[0]}…{value[-2:]}"
