"""Evaluators `wer` and `cer`: word and character error rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ftengine import api
from ftengine.api import Display, Estimator, ExampleScores, IntervalEvaluator, Metric, Prediction, Rows, Table
from ftengine.errors import RecipeError, text_of_file
from ftengine.text import with_ends
from ftengine_speech.normalise import normalised

KINDS = {"deletions": "delete", "insertions": "insert", "substitutions": "substitute"}
"""Kinds of errors, and what jiwer calls them."""
SHOWN = 15
"""Confusions and words that tables show, the most frequent."""
SECONDS, NOISE = (2, 5, 10, 20), (10, 20, 30)
"""Where recordings are divided by length in seconds, and by estimated signal-to-noise ratio in dB."""
MOST_SHIFTED = 2000
"""Rows, evenly over all, whose answers are compared with the transcripts of the rows before and after."""


class TextErrorConfig(api.Config):
    """Options of both evaluators."""

    normaliser: Literal["whisper", "basic", "none"] = Field(
        "whisper",
        description="how both texts are written alike: Whisper's English normaliser (other languages: basic); small "
        "letters without punctuation (basic); as they are (none)",
    )
    max_new_tokens: int = Field(224, ge=1, le=4096, description="longest transcript in tokens")


class WordErrorConfig(TextErrorConfig):
    """Options of evaluator wer."""

    words: str | list[str] | None = Field(
        None,
        description="words whose recall is measured, such as names and medicines: a list, or a file with one a line; "
        "an entry may be several words",
    )


class _ErrorRate(IntervalEvaluator):
    """Errors over reference units; a subclass says what the units are."""

    reads = frozenset({"completion", "reference"})
    rate: str
    config: Any

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.generation = {"max_new_tokens": self.config.max_new_tokens}

    def pair(self, prediction: Prediction) -> tuple[str, str] | None:
        """Return transcript and answer, normalised; None without a transcript, or if nothing is left of it."""
        language = prediction.get("language") or "en"
        if prediction["reference"] is None:
            return None
        theirs, ours = (
            normalised(prediction[key], self.config.normaliser, language) for key in ("reference", "completion")
        )
        return (theirs, ours) if any(map(str.isalnum, theirs)) else None

    def score(self, rows: Rows, weights: np.ndarray) -> Mapping[str, float]:
        scores = self.score_resamples(rows, np.asarray(weights)[None])
        return {name: float(values[0]) for name, values in scores.items()}

    def score_resamples(self, rows: Rows, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        return {self.rate: _ratio(weights, rows["errors"], rows["units"])}

    def example_weights(self, rows: Rows) -> Mapping[str, np.ndarray]:
        return {self.rate: np.nan_to_num(np.asarray(rows["units"], dtype=np.float64))}

    def score_examples(self, rows: Rows) -> ExampleScores:
        """Score less the rate; right where nothing is wrong."""
        units, errors = (np.asarray(rows[key], dtype=np.float64) for key in ("units", "errors"))
        with np.errstate(invalid="ignore", divide="ignore"):
            score = np.where(units > 0, -errors / units, np.nan)
        return ExampleScores(score, np.where(np.isnan(score), np.nan, errors == 0))


class WordErrorRate(_ErrorRate):
    """Word error rate: (substitutions + deletions + insertions) / words of the references, over the whole set.

    Alignment and counts are jiwer's. Both texts are normalised first, by Whisper's English normaliser unless
    `normaliser` says otherwise. The details hold the kinds of errors, the most frequent confusions, and the rate by
    length and by noise; with `words`, the recall of these words: how often one that was said is written.
    """

    name = "wer"
    rate = "wer"
    Config = WordErrorConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._listed = _listed_words(self.config.words, self.config.normaliser)
        self.metrics = {
            "wer": Metric(
                "word error rate",
                higher_is_better=False,
                primary=True,
                meaning="Wrong, missing and additional words for each word that was said; can exceed 1.",
            )
        }
        if self._listed:
            self.metrics["word_recall"] = Metric(
                "recall of listed words",
                higher_is_better=True,
                proportion=True,
                meaning="Share of the listed words that were said and are written as said.",
            )

    def keep(self, prediction: Prediction) -> Mapping[str, Any]:
        """Return errors and words of the reference, errors by kind, and listed words that were said and are hit."""
        if (pair := self.pair(prediction)) is None:
            return dict.fromkeys(("errors", "units", *KINDS, "said", "hit"), np.nan)
        counts = Counter[str]()
        for kind, (start, end), (first, last) in _aligned(*pair):
            counts[kind] += max(end - start, last - first)
        said, missed = self._listed_in(*pair)
        return {
            "errors": float(counts.total() - counts["equal"]),
            "units": float(len(pair[0].split())),
            **{kind: float(counts[name]) for kind, name in KINDS.items()},
            "said": float(said),
            "hit": float(said - len(missed)),
        }

    def _listed_in(self, theirs: str, ours: str) -> tuple[int, list[str]]:
        """Return how many listed entries a transcript has, and those of them that are written otherwise."""
        if not self._listed:
            return 0, []
        words = theirs.split()
        hits = {i for kind, where, _ in _aligned(theirs, ours) if kind == "equal" for i in range(*where)}
        places = list(_places(words, self._listed))
        return len(places), [" ".join(words[i:j]) for i, j in places if not hits.issuperset(range(i, j))]

    def score_resamples(self, rows: Rows, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        scores = dict(super().score_resamples(rows, weights))
        if self._listed:
            scores["word_recall"] = _ratio(weights, rows["hit"], rows["said"])
        return scores

    def trials(self, rows: Rows) -> Mapping[str, float]:
        return {"word_recall": float(np.nansum(rows["said"]))} if self._listed else {}

    def details(self, rows: Rows, estimate: Estimator) -> Iterator[Display | tuple[str, Any]]:
        """Yield the rates of each kind of error, confusions, missed words, and the rate by length and noise."""
        words = np.nansum(np.asarray(rows["units"], dtype=np.float64))
        if not words:
            return
        pairs = self._pairs(rows)
        yield "words", int(words)
        yield "errors", {kind: float(np.nansum(np.asarray(rows[kind], dtype=np.float64)) / words) for kind in KINDS}
        yield "shifted", _shifted(pairs)
        yield "empty_answers", sum(not str(text).strip() for text in rows["completion"])
        there = [pair for pair in pairs if pair is not None]
        yield from _most("Confused words", ("said", "written", "times"), (x for p in there for x in _confused(*p)))
        if self._listed:
            missed = ((word,) for pair in there for word in self._listed_in(*pair)[1])
            yield from _most("Listed words that are written wrongly", ("word", "times"), missed)
        for title, column, ends, unit in (
            ("Word error rate by length", "seconds", SECONDS, "s"),
            ("Word error rate by signal-to-noise ratio", "snr", NOISE, "dB"),
        ):
            if column in rows:
                yield from _by_range(title, rows, column, ends, unit, estimate)

    def _pairs(self, rows: Rows) -> list[tuple[str, str] | None]:
        """Return transcript and answer of each row, normalised; None without a transcript."""
        columns = [rows[key] for key in ("reference", "completion", "language") if key in rows]
        names = ("reference", "completion", "language")
        return [self.pair(dict(zip(names, values, strict=False))) for values in zip(*columns, strict=True)]


class CharacterErrorRate(_ErrorRate):
    """Character error rate: wrong, missing and additional characters for each character of the references, blanks
    included; for languages that are written without blanks. Alignment is jiwer's, normalisation as of `wer`.
    """

    name = "cer"
    rate = "cer"
    Config = TextErrorConfig
    metrics = {  # noqa: RUF012
        "cer": Metric(
            "character error rate",
            higher_is_better=False,
            meaning="Wrong, missing and additional characters for each character that was said; can exceed 1.",
        )
    }

    def keep(self, prediction: Prediction) -> Mapping[str, Any]:
        if (pair := self.pair(prediction)) is None:
            return {"errors": np.nan, "units": np.nan}
        import jiwer

        output = jiwer.process_characters(*pair)
        return {
            "errors": float(output.substitutions + output.deletions + output.insertions),
            "units": float(len(pair[0])),
        }


Chunk = tuple[str, tuple[int, int], tuple[int, int]]
"""Kind, the words of the reference, and those of the answer."""


def _aligned(theirs: str, ours: str) -> list[Chunk]:
    import jiwer

    chunks = jiwer.process_words(theirs, ours).alignments[0]
    return [(c.type, (c.ref_start_idx, c.ref_end_idx), (c.hyp_start_idx, c.hyp_end_idx)) for c in chunks]


def _errors(chunks: Sequence[Chunk]) -> int:
    return sum(max(end - start, last - first) for kind, (start, end), (first, last) in chunks if kind != "equal")


def _confused(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    """Yield each word of the reference for which another is written, with that."""
    said, written = theirs.split(), ours.split()
    for kind, where, there in _aligned(theirs, ours):
        if kind == "substitute":
            yield from zip(said[slice(*where)], written[slice(*there)], strict=True)


def _shifted(pairs: Sequence[tuple[str, str] | None]) -> dict[str, float]:
    """Return the word error rate against the transcripts of the rows before and after, {"-1": …, "1": …}."""
    found = {}
    for shift in (-1, 1):
        some = range(0, len(pairs), max(1, -(-len(pairs) // MOST_SHIFTED)))
        both = ((pairs[i + shift], pairs[i]) for i in some if 0 <= i + shift < len(pairs))
        moved = [(other[0], own[1]) for other, own in both if other is not None and own is not None]
        if moved:
            words = sum(len(theirs.split()) for theirs, _ in moved)
            found[str(shift)] = sum(_errors(_aligned(*pair)) for pair in moved) / words
    return found


def _ratio(weights: np.ndarray, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    above, below = (
        np.asarray(weights, dtype=np.float64) @ np.nan_to_num(np.asarray(x, dtype=np.float64)) for x in (part, whole)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _listed_words(given: str | list[str] | None, way: str) -> frozenset[tuple[str, ...]]:
    """Return the listed entries as their normalised words (RecipeError: the file cannot be read, or none is left)."""
    if given is None:
        return frozenset()
    lines = given
    if isinstance(given, str):
        try:
            lines = text_of_file(Path(given).expanduser()).splitlines()
        except (OSError, ValueError) as error:
            raise RecipeError(f"evaluator 'wer': cannot read the words in {given!r}: {error}.") from None
    words = frozenset(tuple(text.split()) for line in lines if (text := normalised(line, way)))
    if not words:
        raise RecipeError("evaluator 'wer': option words names no word. Give one at least, or leave it out.")
    return words


def _places(words: Sequence[str], listed: frozenset[tuple[str, ...]]) -> Iterator[tuple[int, int]]:
    """Yield where listed entries stand among words, as (first, after the last)."""
    lengths = sorted({len(entry) for entry in listed})
    for i in range(len(words)):
        for length in lengths:
            if tuple(words[i : i + length]) in listed and i + length <= len(words):
                yield i, i + length


def _most(title: str, columns: tuple[str, ...], items: Iterable[tuple[str, ...]]) -> Iterator[Table]:
    if counted := Counter(items):
        rows: tuple[tuple[str | int, ...], ...] = tuple((*item, times) for item, times in counted.most_common(SHOWN))
        yield Table(title=title, columns=columns, rows=rows)


def _by_range(
    title: str, rows: Rows, column: str, ends: Sequence[int], unit: str, estimate: Estimator
) -> Iterator[Table]:
    """Yield a table of the rate in each range of a column's values, where there is more than one."""
    values = np.asarray([np.nan if x is None else x for x in rows[column]], dtype=np.float64)
    there = ~np.isnan(values) & (np.nan_to_num(np.asarray(rows["units"], dtype=np.float64)) > 0)
    codes = np.where(there, np.digitize(values, ends), -1)
    present = [code for code in range(len(ends) + 1) if (codes == code).any()]
    if len(present) < 2:
        return
    inside = np.stack([codes == code for code in present], axis=1)
    figures: Callable[[np.ndarray], np.ndarray] = lambda weights: np.stack(  # noqa: E731
        [_ratio(weights, rows["errors"] * mask, rows["units"] * mask) for mask in inside.T], axis=1
    )
    names = [
        f"below {ends[0]} {unit}",
        *(f"{a} to {b} {unit}" for a, b in pairwise(ends)),
        f"{ends[-1]} {unit} and more",
    ]
    cells = tuple(
        (names[code], with_ends(found) if np.isfinite(found.value) else None, int(mask.sum()))
        for code, found, mask in zip(present, estimate(figures), inside.T, strict=True)
    )
    yield Table(
        title=title, columns=("range", "word error rate", "rows"), rows=cells, caption="In brackets: 95 % intervals."
    )
