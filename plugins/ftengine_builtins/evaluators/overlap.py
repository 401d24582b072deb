"""How much two texts have in common: normalised equality, token F1 and ROUGE."""

import string
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher

import regex as re

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORDS = re.compile(r"[\p{L}\p{N}\p{M}]+")


def normalized(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation, English articles and superfluous white space.

    In the order of SQuAD's evaluation (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(completion: str, reference: str) -> float:
    """Return the F1 of the words that two texts share after `normalized`; of two texts without words, 1 (SQuAD 2.0)."""
    ours, theirs = normalized(completion).split(), normalized(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return _f1((Counter(ours) & Counter(theirs)).total(), len(ours), len(theirs))


def rouge_words(text: str) -> list[str]:
    """Return the words of ROUGE: runs of letters and digits in lower case, without stemming.

    For ASCII text these are the tokens of Google's rouge-score. Unlike there, letters of other scripts count, with
    their combining marks (Unicode's category M), composed where possible.
    """
    return _WORDS.findall(unicodedata.normalize("NFC", text.lower()))


def rouge_n(ours: Sequence[str], theirs: Sequence[str], n: int) -> float:
    """Return ROUGE-N's F1: shared n-grams, each as often as in both (Lin 2004, aclanthology.org/W04-1013)."""
    mine, other = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (ours, theirs))
    return _f1((mine & other).total(), mine.total(), other.total())


def rouge_l(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Return ROUGE-L's F1: the longest common subsequence over the whole texts, without division into sentences."""
    return _f1(common_subsequence(ours, theirs), len(ours), len(theirs))


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence; a row of the table is the bits of one integer.

    Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[Hashable, int] = {}
    for i, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << i
    everything = (1 << len(a)) - 1
    row = everything
    for item in b:
        met = row & places.get(item, 0)
        row = (row + met | row - met) & everything
    return len(a) - row.bit_count()


def common_run(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Return the length of the longest common run of items."""
    return SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size


def _f1(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs) if shared else 0.0
