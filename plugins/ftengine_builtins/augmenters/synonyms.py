"""Words replaced from a user's list."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from ftengine.api import AugmenterConfig, RandomSource, TextAugmenter
from ftengine.errors import DataError
from ftengine.errors import shown as shown_value
from ftengine_builtins.augmenters.words import LEXICAL

FORMATS = (".csv", ".json", ".tsv", ".txt")


class Synonyms(TextAugmenter):
    """Replace words from a word list of yours.

    Whole words and phrases are looked up whatever their case, the longest phrase first, and each is replaced with
    probability `rate`. A replacement is written as the word was: BIG becomes LARGE, Big becomes Large.
    """

    name = "synonyms"
    paper = "Zhang et al. 2015, arXiv:1509.01626; Wei and Zou 2019, arXiv:1901.11196"

    class Config(AugmenterConfig):
        file: str = Field(
            min_length=1,
            description="the word list: .tsv, .csv or .txt with a word and its replacements on each line, or .json "
            "with {word: [replacements]}",
        )
        rate: float = Field(0.3, ge=0, le=1, description="share of a text's listed words that are replaced")
        both_ways: bool = Field(False, description="each word of a line may replace the others")

    def check_options(self) -> None:
        """Read the word list (DataError: it is missing or malformed)."""
        _ = self._list

    @cached_property
    def _list(self) -> dict[str, list[str]]:
        return read_word_list(self.config.file, both_ways=self.config.both_ways)

    @cached_property
    def _longest(self) -> int:
        """Words of the longest phrase."""
        return max(len(key.split()) for key in self._list)

    def change(self, text: str, rng: RandomSource) -> str:
        spans = [match.span() for match in LEXICAL.finditer(text)]
        pieces, at, i = [], 0, 0
        while i < len(spans):
            count, others = self._find(text, spans, i)
            start, stop = spans[i][0], spans[i + max(1, count) - 1][1]
            if others and rng.random() < self.config.rate:
                pieces += [text[at:start], in_case_of(text[start:stop], rng.choice(others))]
                at = stop
            i += max(1, count)
        return "".join([*pieces, text[at:]])

    def _find(self, text: str, spans: list[tuple[int, int]], i: int) -> tuple[int, list[str]]:
        """Return the number of words of the longest listed phrase at word i, and its replacements."""
        for count in range(min(self._longest, len(spans) - i), 0, -1):
            phrase = spans[i : i + count]
            is_phrase = all(text[a[1] : b[0]].isspace() for a, b in pairwise(phrase))
            if is_phrase and (others := self._list.get(lookup_key(text[phrase[0][0] : phrase[-1][1]]))):
                return count, others
        return 0, []


def in_case_of(word: str, other: str) -> str:
    """Return `other` in the case of `word`: upper case, with a capital, or unchanged."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other


def read_word_list(path: str, *, both_ways: bool = False) -> dict[str, list[str]]:
    """Read a word list.

    Args:
        path: .tsv, .csv or .txt (with commas): a word, then its replacements, a line each and without a header; blank
            lines and lines that begin with # are left out. Or .json: {word: [replacements]}.
        both_ways: treat every entry as a group of words, each of which may replace the others.

    Returns:
        For each word in the form of `lookup_key` its replacements, in the file's order (DataError, with the line: the
        file is missing, of another format, malformed or empty).
    """
    word_list: dict[str, list[str]] = {}
    for where, group in _entries(Path(path).expanduser(), path):
        if len(group) < 2 or not all(text.strip() for text in group):
            raise DataError(f"{where}: {group[0]!r} needs a word and at least one replacement, none of them empty.")
        for word in group if both_ways else group[:1]:
            replacements = word_list.setdefault(lookup_key(word, where), [])
            replacements += [
                x.strip() for x in group if lookup_key(x) != lookup_key(word) and x.strip() not in replacements
            ]
    if not any(word_list.values()):
        raise DataError(f"word list {path!r} holds no word with a replacement.")
    return word_list


def lookup_key(text: str, where: str = "") -> str:
    """Return a word without case and extra blanks (DataError: with `where`, if it is not a word)."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    if where and " ".join(LEXICAL.findall(text)) != text:
        raise DataError(
            f"{where}: {text!r} is not a word or phrase. Use letters, digits, _ and, inside a word, ' and -."
        )
    return text.casefold()


def _entries(path: Path, shown: str) -> Iterator[tuple[str, list[str]]]:
    """Yield places, each with a word (or phrase) and its replacements."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DataError(f"word list {shown!r} has the suffix {suffix!r}. Allowed: {', '.join(FORMATS)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"word list {shown!r} does not exist (option file, relative to the working directory). Give a .tsv, "
            ".csv or .txt with a word and its replacements on each line, or a .json with {word: [replacements]}."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read word list {shown!r}: {error}. It must be a text file in UTF-8.") from None
    yield from _from_json(text, shown) if suffix == ".json" else _from_lines(text, shown, suffix)


def _from_json(text: str, shown: str) -> Iterator[tuple[str, list[str]]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{shown}:{error.lineno}: not valid JSON: {error.msg}.") from None
    if not isinstance(content, dict):
        raise DataError(f"{shown}: a word list in JSON is {{word: [replacements]}}, not a {type(content).__name__}.")
    for word, others in content.items():
        others = [others] if isinstance(others, str) else others
        if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
            raise DataError(f"{shown}: {word!r} has {shown_value(others)}; it must be a list of texts.")
        yield shown, [word, *others]


def _from_lines(text: str, shown: str, suffix: str) -> Iterator[tuple[str, list[str]]]:
    separator, file = "\t" if suffix == ".tsv" else ",", io.StringIO(text, newline="")
    reader = csv.reader(file, delimiter=separator, skipinitialspace=True)
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells) or cells[0].startswith("#"):
                continue
            while not cells[-1].strip():  # tables pad rows with empty cells
                cells.pop()
            yield f"{shown}:{reader.line_num}", cells
    except csv.Error as error:
        raise DataError(f"{shown}:{reader.line_num}: {error}.") from None
