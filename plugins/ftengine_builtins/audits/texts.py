"""Audits of texts: odd rows, a wrong encoding, personal data."""

import re
from collections.abc import Iterator

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import PERSONAL, capitalized, find_personal
from ftengine_builtins.audits.counting import finding, found_rows
from ftengine_builtins.audits.languages import letter_script

ODDITIES = {
    "empty": "no text but white space",
    "repeated": "nothing but one character or word, repeated",
    "short": "a length far below that of most",
    "long": "a length far above that of most",
    "control": "control characters",
    "scripts": "letters of two scripts within a word",
}

REPEATED_CHARACTERS, REPEATED_WORDS = 10, 5
"""So many of the same and nothing else make a row repetitive."""
OUTLYING_FENCES, OUTLYING_RATIO, OUTLYING_FEWEST = 3.0, 8.0, 50
"""A length is outlying beyond 3 quartile distances on a log scale (Tukey's outer fence) and 8 times the median, in
splits of 50 rows and more."""

# Controls as code points, so that none stands in this file; tab, line feed, form feed and carriage return are text.
_CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f]")
_WORD = re.compile(r"[^\W\d_]+")
# Each is written in one script with Latin letters that look the same, so that a mixed word is an accident or a trick.
_LOOKALIKES = frozenset({"Latin", "Cyrillic", "Greek"})


class Oddities(Audit):
    """Finds odd rows: empty, repetitive, of unusual length, with control characters or mixed scripts."""

    name = "oddities"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        by_kind: dict[str, dict[str, list[int]]] = {}
        for split, rows in data.splits.items():
            lengths = np.zeros(len(rows), dtype=np.int64)
            for i, text in enumerate(rows.texts()):
                lengths[i] = len(text.strip())
                for kind in find_oddities(text):
                    by_kind.setdefault(kind, {}).setdefault(split, []).append(i)
            if not lengths.any():  # images, say, which are not empty for having no text
                by_kind.get("empty", {}).pop(split, None)
            for kind, outliers in zip(("short", "long"), outlying(lengths), strict=True):
                if len(outliers):
                    by_kind.setdefault(kind, {})[split] = outliers.tolist()
        for kind, what in ODDITIES.items():
            if by_kind.get(kind):
                yield finding(data, by_kind[kind], f"have {what}", kind)


def find_oddities(text: str) -> list[str]:
    """Return the keys of `ODDITIES` that apply to a row's text; `outlying` finds unusual lengths."""
    if not text or text.isspace():
        return ["empty"]
    kinds = []
    words = text.split()
    characters = set().union(*map(set, words[:1000]))
    one_character = len(characters) == 1 and sum(map(len, words)) >= REPEATED_CHARACTERS
    if one_character or (len(words) >= REPEATED_WORDS and len(set(words)) == 1):
        kinds.append("repeated")
    if _CONTROL.search(text):
        kinds.append("control")
    if not text.isascii() and _mixes_scripts(text):
        kinds.append("scripts")
    return kinds


def _mixes_scripts(text: str) -> bool:
    if len({letter_script(character) for character in set(text)} & _LOOKALIKES) < 2:
        return False
    scripts = ({letter_script(character) for character in word} & _LOOKALIKES for word in _WORD.findall(text))
    return any(len(of_word) > 1 for of_word in scripts)


def outlying(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of rows far shorter and far longer than most, by (rows,) characters; empty rows are left out."""
    some = lengths[lengths > 0]
    if len(some) < OUTLYING_FEWEST:
        return np.flatnonzero([]), np.flatnonzero([])
    logs = np.log(np.maximum(lengths, 1))
    low, middle, high = np.quantile(np.log(some), [0.25, 0.5, 0.75])
    fence, ratio = OUTLYING_FENCES * (high - low), np.log(OUTLYING_RATIO)
    short = (lengths > 0) & (logs < min(low - fence, middle - ratio))
    return np.flatnonzero(short), np.flatnonzero(logs > max(high + fence, middle + ratio))


REPLACEMENT = "\ufffd"
OFTEN = 0.05
"""Share of all rows, near end, from which texts in a wrong encoding are an alarm, and marks that were not decoded are
said."""
ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,4}|#x[0-9a-fA-F]{2,4});")
ESCAPE = re.compile(r"\\(?:(?:n|r\\n|t)(?![a-z])|u[0-9a-fA-F]{4})")
NO_ESCAPE = re.compile(r"\$[^$\n]+\$|\b[C-Hc-h]:\\\S*")
"""Formulas and paths of Windows."""
MARKUP = re.compile(r"<(?!br\b)[a-z][a-z0-9]*\b[^<>]*>|```", re.IGNORECASE)
"""What is HTML or code, where entities are meant."""
PAGE = re.compile(r"\s*<(?:!doctype|html|head|body|div|p|span|table)\b[^<>]*>.*</[a-z0-9]+>\s*", re.I | re.DOTALL)


class Mojibake(Audit):
    """Finds text that was decoded wrongly: UTF-8 read as Latin-1 and the like (ftfy), HTML and escapes left in it.

    Replacement characters are found as well. Escapes such as `\\n` count where no text has a line break and no
    small letter follows: in code, `\\nu` and `C:\\temp` they are meant, as are entities beside tags.
    """

    name = "mojibake"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        by_kind = matching(data, kinds_of)
        for kind, (remedy, what) in UNDECODED.items():
            if kind not in by_kind:
                continue
            found = found_rows(data, by_kind[kind], what)
            often = found.least >= OFTEN
            if kind in ("entities", "escapes", "pages") and not often:
                continue
            if kind == "escapes" and any("\n" in text for view in data.splits["train"] for text in view.texts):
                continue
            alarm = often and kind != "pages"  # which may be what the model will get
            yield Finding(
                kind="data",
                level="alarm" if alarm else "note",
                text=f"{capitalized(remedy)}: {found.text} (e.g. {found.places[0]}).",
                brief=f"{remedy}: {found.text}",
                explains=("splits", "quality", "learning") if alarm else (),
                figures={"rows": found.counts, "undecoded": kind},
                places=found.places,
            )


UNDECODED = {
    "garbled": ("save the file as UTF-8 anew", "hold text in a wrong encoding, such as 'Ã©' for 'é'"),
    "replaced": (
        "read the file in its own encoding",
        f"hold the replacement character {REPLACEMENT}, left by a wrong decoding",
    ),
    "entities": ("turn HTML entities into characters", "hold entities such as &amp; or &#39;"),
    "escapes": ("turn escapes into characters", "hold a backslash and n, t or u in the place of what they stand for"),
    "pages": ("take HTML tags out, unless the model will get them", "are HTML from the first tag to the last"),
}
"""What to do, and what rows have, by kind."""


def kinds_of(text: str) -> Iterator[str]:
    """Yield the keys of `UNDECODED` that apply to a text."""
    if "&" in text and ENTITY.search(text) and not MARKUP.search(text):
        yield "entities"
    if "\\" in text and ESCAPE.search(NO_ESCAPE.sub("", text)):
        yield "escapes"
    if text.lstrip()[:1] == "<" and PAGE.fullmatch(text):
        yield "pages"
    if text.isascii():
        return
    if REPLACEMENT in text:
        yield "replaced"
    if is_garbled(text):
        yield "garbled"


def is_garbled(text: str) -> bool:
    """Return whether ftfy can undo a wrong decoding of a text (Speer 2019, "ftfy")."""
    import ftfy

    steps = ftfy.fix_encoding_and_explain(text).explanation
    return any(step.action == "decode" for step in steps or ())


class PersonalData(Audit):
    """Finds e-mail addresses, telephone numbers, payment cards and bank accounts by their form."""

    name = "personal-data"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        by_kind = matching(data, lambda text: {kind for kind, _ in find_personal(text)})
        for kind, values in PERSONAL.items():
            if kind in by_kind:
                yield finding(data, by_kind[kind], f"hold what looks like {values}", kind)


def matching(data: AuditedData, kinds_of) -> dict[str, dict[str, list[int]]]:
    """Return {kind: {split: rows}} of the rows for whose text `kinds_of` returns kinds."""
    by_kind: dict[str, dict[str, list[int]]] = {}
    for split, rows in data.splits.items():
        for i, text in enumerate(rows.texts()):
            for kind in kinds_of(text):
                by_kind.setdefault(kind, {}).setdefault(split, []).append(i)
    return by_kind
