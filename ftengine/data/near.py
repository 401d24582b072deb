"""Near duplicates: pairs of texts whose words are mostly the same.

Texts are compared as bags of words by their Jaccard similarity |A ∩ B| / |A ∪ B|. Candidates come from MinHash
(Broder 1997) with banding (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, §3.4), and each is checked
against the texts themselves, so that no pair below the threshold is reported. A pair exactly at the threshold is
found with a probability of `RECALL`, more similar ones nearly always. rensa computes MinHash; its LSH index is not
used, as it takes 1.7 KB of memory a text (rensa 0.5), while the sorted bands here take 0.3 KB.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from ftengine.data.cache import BATCH_ROWS
from ftengine.data.distinct import Distinct
from ftengine.text import CJK, comparable

FEWEST_WORDS = 16
"""Texts with fewer words are near duplicates only if all of their words are equal: "Yes, of course." and
"No, of course." have two of three words in common."""

BANDS = 20
RECALL = 0.995
LONGEST_BAND = 10
"""Most hashes in a band, so that a sketch has at most 200."""

SAMPLE, SAMPLE_FEWEST = 2000, 20
"""Distinct examples in which shared words are counted; with fewer, no word counts as shared."""
USUAL = 1 << 14
"""Longest text, in characters, that is cached meanwhile, so that the cache holds at most 32 million."""
SHARED = 0.5
"""Words that are each in more than this share of all examples, and that occur together in more than this share, belong
to a template or an instruction rather than to the content, and are left out of the comparison. Words that are merely
frequent ("the", "of") stay: they do not make two texts similar."""
CARRIED, MOSTLY = 0.8, 0.5
"""An example has the template if it has this share of the template's words, and they exceed that share of its own."""

CLOSE_RUN, CLOSE = 32, 4
"""In a band with more members than `CLOSE_RUN`, each is compared with the first and with its `CLOSE` neighbours."""
SLACK = 4
"""A pair is dropped without reading its texts if its sketches agree less than the threshold by so many standard
deviations."""
CACHED_TEXTS = 1024

# Punctuation does not count; other signs do ("3 + 4", ":)" and ":(").
_WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+|[^\w\s.,!?;:…\"'“”‘’«»、。]")
# In JSON or a Python dictionary; the length is bounded, as a quote may never be closed.
_KEY = re.compile(r"""(?<=[{,])\s*("[^"\\]{0,60}"|'[^'\\]{0,60}')\s*:""")


@dataclass(frozen=True)
class Near:
    """Near duplicates among distinct rows.

    Args:
        threshold: least Jaccard similarity.
        groups: (distinct,) equal for near duplicates, directly or through others.
        pairs: (pairs, 2) rows that are near duplicates: not all pairs of a group, but for each row at least one with
            each split that has a near duplicate of it.
        same: (distinct,) the first row that has the same words in the same order.
        shared: number of words that were left out because more than half of the examples share them.
        boilerplate: number of rows of which at most a fifth of the words remain without these.
        short: number of rows with fewer than `FEWEST_WORDS` words, which are near only to rows with the same words.
    """

    threshold: float
    groups: np.ndarray
    pairs: np.ndarray
    same: np.ndarray
    shared: int = 0
    boilerplate: int = 0
    short: int = 0


def normalised(text: str) -> list[str]:
    """Return a text's words and signs, without case, punctuation, compatibility forms and invisible characters."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", comparable(text))
    return _WORD.findall(text.casefold())


def bag(words: Collection[str], shared: Collection[str] = ()) -> list[str]:
    """Number repeated words, so that sets of the result compare as bags; shared words are left out."""
    count: dict[str, int] = {}
    numbered = []
    for word in words:
        if word not in shared:
            times = count[word] = count.get(word, 0) + 1
            numbered.append(word if times == 1 else f"{word} {times}")
    return numbered


@dataclass(frozen=True)
class _Form:
    """The template that most examples share, which is left out of the comparison.

    Args:
        keys: keys of JSON, with their quotes.
        words: words of an instruction or a template.
    """

    keys: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()

    def values(self, text: str) -> list[str]:
        """Return a text's words (`normalised`) without the shared keys."""
        if self.keys and ":" in text and "{" in text:
            text = _KEY.sub(lambda key: " " if key[1] in self.keys else key[0], text)
        return normalised(text)

    def compared_words(self, text: str) -> list[str]:
        """Return the bag of words to compare: a text's `values`, without the template's words if it has these."""
        words = self.values(text)
        return bag(words, self.words if self.words and self.is_of(set(words)) else ())

    def is_of(self, words: Set[str]) -> bool:
        """Return whether an example with these words has the template."""
        here = sum(word in words for word in self.words)
        return here >= CARRIED * len(self.words) and here > MOSTLY * len(words)


def find_near(distinct: Distinct, threshold: float) -> Near:
    """Find near duplicates among distinct rows.

    Memory holds a sketch and a few hashes a row: about 250 bytes at a threshold of 0.8. If many texts are alike, each
        is
    compared with only a few of them, which suffices to group them. `threshold` is the least Jaccard similarity of near
    duplicates, from 0.5 to 1.
    """
    form = _form(distinct)
    sketches = _Sketches(distinct, threshold, form)
    search = _Search(distinct, threshold, form, sketches)
    for first, second in _runs(sketches.keys, np.flatnonzero(sketches.keys)):
        search.take(first, second, verify=False)
    if threshold < 1 and len(sketches.members):
        for band in range(BANDS):
            for first, second in _runs(sketches.bands[:, band], np.arange(len(sketches.members))):
                search.take(sketches.members[first], sketches.members[second], verify=True)
    counts = {"shared": len(form.words), "boilerplate": sketches.boilerplate, "short": sketches.short}
    return Near(threshold, search.groups(), search.pairs(), _same(sketches.keys), **counts)


def _form(distinct: Distinct) -> _Form:
    """Return the template: words in more than half of the examples, and keys in more than half of those with keys."""
    sample, text = range(min(len(distinct), SAMPLE)), _cached_text(distinct)  # in the order of hashes: a random sample
    keys = _frequent(set(_KEY.findall(text(number))) for number in sample)
    without = _Form(keys)
    if len(sample) < SAMPLE_FEWEST:
        return without
    form = _Form(keys, _frequent(set(without.values(text(number))) for number in sample))
    if not form.words:
        return form
    matching = sum(form.is_of(set(form.values(text(number)))) for number in sample)
    return form if matching > SHARED * len(sample) else without


def _cached_text(distinct: Distinct) -> Callable[[int], str]:
    """Return a function that gives the text of a distinct row, with a cache for texts of usual length."""
    texts: dict[int, str] = {}

    def text(number: int) -> str:
        content = texts[number] if number in texts else distinct.text(number)
        return texts.setdefault(number, content) if len(content) <= USUAL else content

    return text


def _frequent(sets: Iterable[Set[str]]) -> frozenset[str]:
    """Return the strings that are in more than half of the sets that are not empty."""
    count, of = Counter[str](), 0
    for members in sets:
        count.update(members)
        of += bool(members)
    return frozenset(name for name, times in count.items() if times > SHARED * of)


def _same(keys: np.ndarray) -> np.ndarray:
    result, nonempty = np.arange(len(keys)), np.flatnonzero(keys)
    _, first, inverse = np.unique(keys[nonempty], return_index=True, return_inverse=True)
    result[nonempty] = nonempty[first[inverse]]
    return result


def band_length(threshold: float) -> int:
    """Return the largest band with which a pair at the threshold shares a band with a probability of `RECALL`."""
    if threshold >= 1:
        return LONGEST_BAND
    longest = math.log(1 - (1 - RECALL) ** (1 / BANDS)) / math.log(threshold)
    return max(1, min(LONGEST_BAND, int(longest)))


class _Sketches:
    """The sketches and hashes of distinct rows.

    Attributes:
        keys: (distinct,) a hash of all words in order; 0 if there are none.
        members: rows with enough words to be near, rather than equal, to others.
        bands: (members, BANDS) a hash of each band of the sketch.
        sketches: (members, hashes) the last byte of each MinHash.
    """

    def __init__(self, distinct: Distinct, threshold: float, form: _Form) -> None:
        self._length = band_length(threshold)
        self.keys = np.zeros(len(distinct), dtype=np.uint64)
        self.boilerplate = self.short = 0
        members, parts, rows = list[int](), list[tuple[np.ndarray, np.ndarray]](), self._words(distinct, form)
        while some := list(islice(rows, BATCH_ROWS)):
            members += [number for number, _ in some]
            parts.append(self._sketch([words for _, words in some]))
        self.members = np.array(members, dtype=np.int64)
        if parts:
            order = np.argsort(self.members)  # by hash again, so that the order of files does not matter
            self.members = self.members[order]
            self.bands, self.sketches = (np.concatenate(arrays)[order] for arrays in zip(*parts, strict=True))

    def _words(self, distinct: Distinct, form: _Form) -> Iterator[tuple[int, list[str]]]:
        for number, text in distinct.texts():
            words = normalised(text)
            if not words:
                continue
            self.keys[number] = int.from_bytes(blake2b(" ".join(words).encode(), digest_size=8).digest(), "big") or 1
            compared = form.compared_words(text)
            self.boilerplate += len(words) >= FEWEST_WORDS and len(compared) <= len(words) / 5
            self.short += len(words) < FEWEST_WORDS
            if len(compared) >= FEWEST_WORDS:
                yield number, compared

    def _sketch(self, bags: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        from rensa import RMinHash

        rows = RMinHash.digest_matrix_from_token_sets(bags, BANDS * self._length, 1).to_rows()
        hashes = np.array(rows, dtype=np.uint32)
        bands = hashes.reshape(len(hashes), BANDS, self._length)
        mixed = np.zeros(bands.shape[:2], dtype=np.uint64)
        for i in range(self._length):  # FNV-1a over whole words
            mixed = (mixed ^ bands[:, :, i]) * np.uint64(0x100000001B3)
        return (mixed >> np.uint64(16)).astype(np.uint32), hashes.astype(np.uint8)


class _Search:
    """Groups candidates that are near duplicates, reading as few texts as possible."""

    def __init__(self, distinct: Distinct, threshold: float, form: _Form, sketches: _Sketches) -> None:
        self._threshold, self._sketches = threshold, sketches
        self._parent = np.arange(len(distinct))
        self._sides = distinct.sides()
        self._known_sides = self._sides.copy()  # splits known to have the row or a near duplicate of it
        self._pairs: list[tuple[int, int]] = []
        self._refused: set[int] = set()
        self._bag = lru_cache(CACHED_TEXTS)(lambda number: frozenset(form.compared_words(distinct.text(number))))
        sketch = BANDS * band_length(threshold)
        self._agreeing = (threshold - SLACK * math.sqrt(threshold * (1 - threshold) / sketch)) * sketch

    def groups(self) -> np.ndarray:
        """Return (distinct,) numbers, equal within a group."""
        while not np.array_equal(above := self._parent[self._parent], self._parent):
            self._parent = above
        return self._parent

    def pairs(self) -> np.ndarray:
        """Return the pairs of near duplicates, each with the lower number first."""
        return np.array(self._pairs, dtype=np.int64).reshape(-1, 2)

    def take(self, first: np.ndarray, second: np.ndarray, *, verify: bool) -> None:
        """Compare candidate pairs, given as two arrays of numbers, and group near duplicates."""
        groups = self.groups()
        open_ = (groups[first] != groups[second]) | (self._news(first, second) != 0)
        first, second = first[open_], second[open_]
        if verify and len(first):
            promising = self._promising(first, second)
            first, second = first[promising], second[promising]
        for first_row, second_row in zip(first.tolist(), second.tolist(), strict=True):
            a, b = min(first_row, second_row), max(first_row, second_row)
            root, other_root = self._root(a), self._root(b)
            if (root == other_root and not self._news(a, b)) or a * len(self._parent) + b in self._refused:
                continue
            if verify and self._similarity(a, b) < self._threshold:
                self._refused.add(a * len(self._parent) + b)
                continue
            self._parent[max(root, other_root)] = min(root, other_root)
            self._known_sides[a] |= self._sides[b]
            self._known_sides[b] |= self._sides[a]
            self._pairs.append((a, b))

    def _news(self, first: Any, second: Any) -> Any:
        """Return the splits that have one row of a pair but no known near duplicate of the other yet (bits)."""
        return (self._sides[second] & ~self._known_sides[first]) | (self._sides[first] & ~self._known_sides[second])

    def _promising(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        at = np.searchsorted(self._sketches.members, np.stack([first, second]))
        promising = np.zeros(len(first), dtype=bool)
        for start in range(0, len(first), 1 << 16):  # 2 × 65,536 sketches at one time
            part = slice(start, start + (1 << 16))
            same = self._sketches.sketches[at[0, part]] == self._sketches.sketches[at[1, part]]
            promising[part] = same.sum(axis=1) >= self._agreeing
        return promising

    def _similarity(self, a: int, b: int) -> float:
        bag_a, bag_b = self._bag(a), self._bag(b)
        common = len(bag_a & bag_b)
        return common / (len(bag_a) + len(bag_b) - common)

    def _root(self, number: int) -> int:
        parent = self._parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = int(parent[number])
        return number


def _runs(keys: np.ndarray, of: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of members `of` with equal keys: all pairs of a short run, neighbours and the first of a long one."""
    order = of[np.argsort(keys[of], kind="stable")]
    sorted_ = keys[order]
    _, start, size = np.unique(sorted_, return_index=True, return_counts=True)
    first, length = np.repeat(start, size), np.repeat(size, size)
    at = np.arange(len(order))
    for distance in range(1, CLOSE_RUN):
        inside = at - first >= distance
        chosen = at[inside & ((length <= CLOSE_RUN) | (distance <= CLOSE))]
        if not len(chosen):
            break
        yield order[chosen - distance], order[chosen]
    far = at[(length > CLOSE_RUN) & (at - first > CLOSE)]
    if len(far):
        yield order[first[far]], order[far]
