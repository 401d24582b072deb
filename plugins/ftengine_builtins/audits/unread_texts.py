"""Unread columns of text whose words predict the label where those of the read columns do not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ftengine.api import AuditedData, Finding, Level
from ftengine.text import capitalized, percent
from ftengine_builtins.audits.column_values import first_values, values_of
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.audits.split_shift import shortened
from ftengine_builtins.audits.word_scores import TOKEN, DrawnRows, draw_rows, one_hot, out_of_sample

SAMPLE = 400
"""Rows that are looked at, drawn from all."""
FEWEST, LOOKED_AT = 80, 200
"""Rows below which nothing is said, and training rows, the first, by which columns are chosen."""
MOST_TEXTS = 5
"""Columns of texts that are tried, those with the most words."""
WORDS = 3
"""Words, not numbers, that a text has on average, at least."""
OTHERS = 0.5
"""Share of rows with a text of their own, at least: of few texts, values are tried."""
GAIN = 0.2
"""How much more of the labels, or of the numbers' variance, the words of a column tell, at the interval's near end,
than the most frequent label or the mean does and than the words of what is read do, for it to be said. Half as much and
no more is what these may tell themselves for an alarm."""
SURELY = 0.95
"""Share of the labels that the words predict from which they may have been written once the label was known, as the
rationale of an annotator is: no alarm, unless what is read is no text at all."""
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
"""Characters of Thai, Lao, Burmese and Khmer, which are written without blanks: what their words tell is not known."""


def find_unread_texts(data: AuditedData, names: Sequence[str]) -> Iterator[Finding]:
    """Name the column whose words predict most labels or numbers, if that is far more than the read text does."""
    names = [name for name, of in first_values(data, names, LOOKED_AT) if _words_in(of) >= WORDS * len(of) > 0]
    rows = draw_rows(data, SAMPLE, numbers=True) if names else None
    if rows is None or len(rows.texts) < FEWEST:
        return
    columns = _texts(data, names, rows)
    if not columns or sum(bool(UNSPACED.search(text)) for text in rows.texts) >= OTHERS * len(rows.texts):
        return
    constant = 0.0 if rows.numbers is not None else float(np.bincount(rows.labels).max() / len(rows.labels))
    words, _ = _predicted(rows, rows.texts)
    tried = [(*_predicted(rows, texts), name) for name, texts in columns]
    accuracy, low, name = max(tried)
    if low >= max(constant, words) + GAIN:
        figures = {"column": name, "told": accuracy, "low": low, "constant": constant, "words": words}
        figures |= {"rows": len(rows.texts), "text": True, "numbers": rows.numbers is not None}
        yield _finding(figures, reads_texts=_words_in(rows.texts) >= WORDS * len(rows.texts))


def _texts(data: AuditedData, names: Sequence[str], rows: DrawnRows) -> list[tuple[str, list[str]]]:
    """Return the columns of texts, those with the most words first, and the texts of sampled rows."""
    found = []
    for name, of in values_of(data, names, rows.rows):
        texts = [shortened(value) if isinstance(value, str) else "" for value in of]
        if len(set(texts)) >= OTHERS * len(texts):
            found.append((_words_in(texts), name, texts))
    return [(name, texts) for _, name, texts in sorted(found, reverse=True)[:MOST_TEXTS]]


def _words_in(texts: Sequence[Any]) -> int:
    """Count the words of all texts, not numbers."""
    return sum(word[0].isalpha() for text in texts if isinstance(text, str) for word in TOKEN.findall(shortened(text)))


def _predicted(rows: DrawnRows, texts: Sequence[str]) -> tuple[float, float]:
    """Return the share of labels, or of numbers' variance, that words predict, and its interval's near end.

    The variance's interval is that of the mean squared error.
    """
    if not any(TOKEN.search(text) for text in texts):
        return 0.0, 0.0
    if rows.numbers is None:
        right = out_of_sample(texts, one_hot(rows.labels)).argmax(1) == rows.labels
        return float(right.mean()), share_within(int(right.sum()), len(right))[0]
    centred = rows.numbers - rows.numbers.mean()
    unexplained = (rows.numbers - out_of_sample(texts, rows.numbers[:, None])[:, 0]) ** 2 / (centred**2).mean()
    explained = 1 - float(unexplained.mean())
    return explained, explained - 1.96 * float(unexplained.std()) / len(texts) ** 0.5


def _finding(figures: dict[str, Any], *, reads_texts: bool) -> Finding:
    """Return an alarm if the read columns predict nothing, else a note.

    Args:
        reads_texts: whether the read columns have words, not only ids.
    """
    what = "of the numbers' variance" if figures["numbers"] else "of the labels"
    predicts = f"its words predict {percent(figures['told'])} {what}; the columns that are read predict "
    predicts += percent(max(0.0, figures["words"]))
    constant = "" if figures["numbers"] else _constant(figures)
    if reads_texts and figures["told"] >= SURELY:
        text = f"Column `{figures['column']}` is not read: {predicts}{constant}. Was it written after the label was "
        text += "known? If not, name it in data.columns."
        return Finding(kind="data", level="note", text=text, figures=figures)
    brief = f"read column `{figures['column']}`: {predicts}"
    text = f"{capitalized(brief)}{constant}. Name it in data.columns, if it is known at prediction time."
    predicts_nothing = figures["words"] <= figures["constant"] + GAIN / 2
    level: Level = "alarm" if predicts_nothing else "note"
    return Finding(kind="data", level=level, text=text, brief=brief, figures=figures)


def _constant(figures: dict[str, Any]) -> str:
    return f" (the most frequent label: {percent(figures['constant'])})"
