"""Audit `languages`."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, AuditedRows, Display, Finding, Table
from ftengine.text import capitalized
from ftengine_builtins.audits.counting import finding, share_within, split_name

SAMPLE = 1000
"""Rows of a split whose language is looked at; with fewer, all."""
LETTERS, CHARACTERS = 40, 500
"""Letters that a text needs, and characters of it that are read."""
SURE = 0.9
"""Probability from which a language is taken as known. Of 7,500 sentences of BBC news with 40 characters and more, none
is given another language than English with 0.5."""
NO_LANGUAGE = "zxx"
FEWEST, MINORITY_FEWEST, MINORITY = 20, 2, 0.05
"""Of 20 rows and more, a script that less than 5 % are written in is a finding, and so is a language that at least two
and less than 5 % are in."""
APART = 0.2
"""How much larger a language's share of held-out rows is than of training rows, between the near ends of both 95 %
intervals, for it to be said."""

NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nb": "Norwegian", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak",
    "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
"""Of the languages that texts are mostly in; others are called by their code."""

# Languages that are taken for each other; `py3langid` knows them as ISO 639 has them.
_CLOSE = (
    {"bs", "hr", "sh", "sr"}, {"da", "nb", "nn", "no"}, {"id", "jv", "ms", "su"}, {"gl", "pt", "es", "ast", "an"},
    {"cs", "sk"}, {"af", "nl", "fy"}, {"hi", "mr", "ne", "bho", "mai"}, {"be", "ru", "uk"}, {"bg", "mk"},
    {"ar", "arz"}, {"az", "tr"}, {"xh", "zu"}, {"fa", "ps", "ur"},
)  # fmt: skip
_LETTER = re.compile(r"[^\W\d_]")
_NO_SCRIPT = frozenset({"Common", "Inherited", "Unknown"})
_EAST_ASIAN = frozenset({"Han", "Hiragana", "Katakana", "Bopomofo"})
EAST_ASIAN = "Chinese or Japanese"
"""Scripts that one text mixes."""


class Languages(Audit):
    """Finds scripts and languages that are rare, or far more frequent in held-out rows (Unicode, py3langid)."""

    name = "languages"

    def examine(self, data: AuditedData) -> Iterator[Finding | Display]:
        scripts: dict[str, Counter[str]] = {}
        languages: dict[str, Counter[str]] = {}
        rare: dict[str, dict[str, list[int]]] = {}
        every: dict[str, Counter[str]] = {}  # whatever the script
        places: dict[str, dict[str, int]] = {}
        unsure = Counter[str]()
        for split, rows in data.splits.items():
            in_script, sampled = _scripts(rows)
            scripts[split] = Counter({script: len(numbers) for script, numbers in in_script.items()})
            total = scripts[split].total()
            known = {name for name, _ in scripts["train"].most_common(1)} if split != "train" else set[str]()
            for script, numbers in in_script.items():
                if script not in known and total >= FEWEST and len(numbers) < MINORITY * total:
                    rare.setdefault(script, {})[split] = numbers
            main = scripts[split].most_common(1)
            languages[split], every[split], places[split] = Counter(), Counter(), {}
            for row, script, text in sampled:
                language, is_main = language_of(text), script == main[0][0]
                if language is None:
                    unsure[split] += is_main
                    continue
                every[split][language] += 1
                languages[split][language] += is_main
                places[split].setdefault(language, row)
            languages[split] = +languages[split]
            usual = {name for name, _ in every["train"].most_common(1)} if split != "train" else set[str]()
            yield from _minorities(split, rows, languages[split], places[split], usual)
        for split in list(data.splits)[:0:-1]:  # figures are made on the last
            yield from _shift(data, split, every["train"], every[split], places[split])
        _identifier.cache_clear()  # 70 MB that a training would hold
        for script, rows_of in rare.items():
            yield finding(data, rows_of, f"are mostly in {script} letters", script)
        for title, counts in (("Scripts", scripts), ("Languages", languages)):
            names = sum(counts.values(), Counter[str]())
            if len(names) > 1:
                cells = [(name, *(count[name] for count in counts.values())) for name, _ in names.most_common()]
                if counts is languages and unsure.total():
                    cells.append(("not sure", *(unsure[split] for split in counts)))
                yield Table(title=title, columns=(title[:-1].lower(), *counts), rows=tuple(cells))


def _scripts(rows: AuditedRows) -> tuple[dict[str, list[int]], list[tuple[int, str, str]]]:
    """Return the rows of each script, and (row, script, beginning) of a sample of sufficiently long rows."""
    sampled = np.zeros(len(rows), dtype=bool)
    sampled[np.random.default_rng(0).permutation(len(rows))[:SAMPLE]] = True
    by_script: dict[str, list[int]] = {}
    longer = []
    for i, text in enumerate(rows.texts()):
        if (script := script_of(text)) is not None:
            by_script.setdefault(script, []).append(i)
            if sampled[i] and sum(map(str.isalpha, text[:CHARACTERS])) >= LETTERS:
                longer.append((i, script, text[:CHARACTERS]))
    return by_script, longer


def _minorities(
    split: str, rows: AuditedRows, counts: Counter[str], places: Mapping[str, int], usual: Set[str]
) -> Iterator[Finding]:
    looked_at = f"{counts.total():,} longer {split_name(split)} rows{' of a sample' * (len(rows) > SAMPLE)}"
    for language in (code for code in minorities(counts) if code not in usual):
        [(main, _)], place = counts.most_common(1), rows.where(places[language])
        text = f"{counts[language]:,} of {looked_at} seem to be in another language ({language}) than most ({main}), "
        text += f"e.g. {place}."
        yield Finding(kind="data", level="note", text=text, figures={"languages": dict(counts)}, places=(place,))


def _shift(
    data: AuditedData, split: str, train: Counter[str], held: Counter[str], places: Mapping[str, int]
) -> Iterator[Finding]:
    """Return a finding if a language is significantly more frequent in held-out rows."""
    n, m = train.total(), held.total()
    if min(n, m) < FEWEST:
        return
    usual, name = train.most_common(1)[0][0], split_name(split)
    ahead = {language: _ahead(language, train, held) for language in held if language != usual}
    language = max(ahead, key=lambda code: ahead[code], default=usual)
    if ahead.get(language, 0.0) < APART:
        return
    new, old = NAMES.get(language, language), NAMES.get(usual, usual)
    lead = f"{name} rows are in {new} ({held[language]:,} of {m:,} whose language is known), training rows in {old} "
    lead += f"({train[usual]:,} of {n:,})"
    remedy = f"add rows in {new} to training, or hold out rows in {old}"
    figures: dict[str, Any] = {"split": split, "language": language, "train": dict(train), "held_out": dict(held)}
    figures |= {"share": held[language] / m, "training_share": train[language] / n}
    place = data.splits[split].where(places[language])
    yield Finding(
        kind="data",
        level="note",
        text=f"{capitalized(lead)}. {capitalized(remedy)}.",
        brief=f"{lead}: {remedy}",
        figures=figures,
        places=(place,),
    )


def _ahead(language: str, train: Counter[str], held: Counter[str]) -> float:
    """Return how much larger a language's share is in held-out rows; 0 if it is less than doubled.

    In training, languages that it is easily confused with count as well.
    """
    alike = {language}.union(*(close for close in _CLOSE if language in close))
    there = sum(train[code] for code in alike)
    if there / train.total() > held[language] / held.total() / 2:
        return 0.0
    return share_within(held[language], held.total())[0] - share_within(there, train.total())[1]


def script_of(text: str) -> str | None:
    """Return the script of most letters in the first 1,000 characters, as Unicode names it; None without letters."""
    if text.isascii():
        return "Latin" if _LETTER.search(text) else None
    count = Counter(script for character in text[:1000] if (script := letter_script(character)))
    return count.most_common(1)[0][0] if count else None


@lru_cache(1 << 16)
def letter_script(character: str) -> str | None:
    """Return the script of a letter by Unicode's property Script (UAX 24); None for letters of several scripts."""
    from fontTools import unicodedata

    if not character.isalpha():
        return None
    name = unicodedata.script_name(unicodedata.script(character))
    if name in _NO_SCRIPT:
        return None
    return EAST_ASIAN if name in _EAST_ASIAN else name


def language_of(text: str) -> str | None:
    """Return the ISO 639 code of a text's language, judged by its beginning; None if that is not certain."""
    language, probability = _identifier().classify(text[:CHARACTERS])
    return language if probability >= SURE and language != NO_LANGUAGE else None


def minorities(counts: Mapping[str, int]) -> list[str]:
    """Return the languages of few rows that are not easily confused with the main one."""
    total = sum(counts.values())
    if total < FEWEST:
        return []
    main = Counter(counts).most_common(1)[0][0]
    return [
        language
        for language, count in counts.items()
        if MINORITY_FEWEST <= count < MINORITY * total and not any({main, language} <= close for close in _CLOSE)
    ]


@cache
def _identifier() -> Any:
    """Return py3langid's classifier (Lui & Baldwin 2012, "langid.py")."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
