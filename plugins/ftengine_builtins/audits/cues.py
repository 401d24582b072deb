"""Cues: features of texts that predict the label in training and are absent in held-out texts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import comb

from ftengine.text import listed, quoted
from ftengine_builtins.audits.counting import share_within

SHARE = 0.2
"""Share of a label's rows that a feature must have to be part of a cue; so many features of a cue are enough."""
FEATURES = 3
COVERED = 0.6
"""Share of a label's rows that have one of these features, from which these are a cue."""
RARER = 10
"""How many times rarer than in training a feature must be in the held-out rows."""
MISSING = 1e-4
"""Probability, times the ways to choose cues among those tried, up to which cues are surely missing there."""
AFFIX = 3
"""Characters at the beginning or end of longer words that are features too, as codes share them."""

Feature = tuple[str, str]
"""What a feature looks at, and what is there: ("word", "ref-00:")."""


@dataclass(frozen=True)
class Cue:
    """Features that predict a label in training and are missing elsewhere.

    Args:
        label: number of the label.
        features: all features that predict it.
        examples: words that have them, in their original form.
        covered, rows: the label's rows with one of the features, and all of them.
        held: held-out rows of that label that have one.
    """

    label: int
    features: frozenset[Feature]
    examples: tuple[str, ...]
    covered: int
    rows: int
    held: int

    def words(self) -> str:
        """Return the words for a message."""
        return listed([*map(quoted, self.examples)])


def features_of(text: str) -> Iterator[tuple[Feature, str]]:
    """Yield the features of a text (words with digits as 0, pairs, affixes), each with the words that have it."""
    words, before = text.split(), ""
    for word in words:
        low = word.lower()
        yield ("word", low), word
        if (shape := re.sub(r"\d", "0", low)) != low:
            yield ("shape", shape), word
        if len(low) > AFFIX + 1:
            yield ("begins", shape[:AFFIX]), word
            yield ("ends", shape[-AFFIX:]), word
        if before:
            yield ("pair", f"{before.lower()} {low}"), f"{before} {word}"
        before = word


@dataclass(frozen=True)
class Texts:
    """Texts with the number of their label each, 0 for none."""

    texts: Sequence[str]
    labels: Sequence[int]

    def having(self, tried: Set[Feature] | None = None) -> dict[Feature, set[int]]:
        """Return the labelled texts that have each feature, or each of the given ones."""
        rows: dict[Feature, set[int]] = defaultdict(set)
        for i, text in enumerate(self.texts):
            for feature, _ in features_of(text) if self.labels[i] else ():
                if tried is None or feature in tried:
                    rows[feature].add(i)
        return rows

    def own(self, rows: Set[int], label: int) -> set[int]:
        """Return those of the given rows that have a label."""
        return {i for i in rows if self.labels[i] == label}


def find_cues(train: Texts, held: Texts) -> list[Cue]:
    """Return for each label the features that predict it in training and are missing in held-out rows.

    A label's features must be in most of its training rows, and missing both in held-out rows of that label and in all.
    Together they must be missing significantly, by the hypergeometric probability of so few rows with a feature among
    the held-out ones.
    """
    from scipy.stats import hypergeom

    rows, of_label = train.having(), Counter(label for label in train.labels if label)
    held_of_label, total = Counter(label for label in held.labels if label), sum(of_label.values())
    tried: dict[Feature, int] = {}
    for feature, having in rows.items():
        if len(having) < max(5, SHARE * min(of_label.values())):
            continue
        label, count = Counter(train.labels[i] for i in having).most_common(1)[0]
        base = of_label[label] / total
        if count >= SHARE * of_label[label] and share_within(count, len(having))[0] > (1 + base) / 2:
            tried[feature] = label
    there = held.having(tried.keys())
    missing: dict[int, list[Feature]] = defaultdict(list)
    for feature, label in tried.items():
        held_rows, having = there.get(feature, set()), rows[feature]
        own = (
            len(held.own(held_rows, label)) * RARER * of_label[label],
            len(train.own(having, label)) * held_of_label[label],
        )
        if own[0] <= own[1] > 0 and len(held_rows) * RARER * total <= len(having) * sum(held_of_label.values()):
            missing[label].append(feature)
    found = [_cue(train, held, label, {key: (rows[key], there.get(key, set())) for key in features})
             for label, features in missing.items()]  # fmt: skip
    cues = sorted((cue for cue in found if cue is not None), key=lambda cue: -cue.covered)
    having, held_rows = sum(cue.covered for cue in cues), sum(cue.held for cue in cues)
    n, m = (sum(of[cue.label] for cue in cues) for of in (of_label, held_of_label))
    ways = len(tried) * comb(len(of_label), len(cues))
    return cues if cues and hypergeom.cdf(held_rows, n + m, having + held_rows, m) * ways <= MISSING else []


def _cue(train: Texts, held: Texts, label: int, rows: Mapping[Feature, tuple[set[int], set[int]]]) -> Cue | None:
    """Choose a few features that cover most of a label's rows; None if they cover too few.

    Args:
        rows: for each feature the training and the held-out rows that have it.
    """
    order, chosen, covered = ("word", "pair", "shape", "begins", "ends"), list[Feature](), set[int]()
    own = {feature: train.own(having, label) for feature, (having, _) in rows.items()}
    total = sum(key == label for key in train.labels)
    for _ in range(FEATURES):
        best = max(own, key=lambda feature: (len(own[feature] - covered), -order.index(feature[0]), feature))
        if len(own[best] - covered) < SHARE * total:
            break
        chosen.append(best)
        covered |= own[best]
    if len(covered) < COVERED * total:
        return None
    examples = []
    for feature in chosen:
        written = (word for key, word in features_of(train.texts[min(own[feature])]) if key == feature)
        examples.append(next(written))
    held_rows = held.own(set().union(*(rows[feature][1] for feature in chosen)), label)
    return Cue(label, frozenset(rows), tuple(dict.fromkeys(examples)), len(covered), total, len(held_rows))


def without(text: str, cues: Sequence[Cue]) -> str:
    """Return a text without the words that are cues."""
    features = frozenset[Feature]().union(*(cue.features for cue in cues))
    if not features:
        return text
    cut = {part for feature, word in features_of(text) if feature in features for part in word.split()}
    return " ".join(word for word in text.split() if word not in cut)
