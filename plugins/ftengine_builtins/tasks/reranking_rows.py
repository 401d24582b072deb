"""Rows of rerankers: a query with relevant and irrelevant documents."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ftengine.api import Example, Recognised
from ftengine.errors import DataError, column_names, did_you_mean, shown
from ftengine_builtins.tasks.embedding_rows import LISTED, NUMBERED, have_several, is_list
from ftengine_builtins.tasks.language_rows import read_text
from ftengine_builtins.tasks.recognising import first_of, renamed

QUERY, POSITIVE, NEGATIVE, DOCUMENT = "query", "positive", "negative", "document"
SHAPE = "`query`, `positive` and `negative`, of which the last two may be lists of texts, or `negative_1`, `negative_2`"
_NEGATIVE = re.compile(rf"negative|{NUMBERED.pattern}")
_KNOWN = {
    QUERY: ("query", "anchor", "question"),
    POSITIVE: LISTED[POSITIVE],
    NEGATIVE: (*LISTED[NEGATIVE], "negative_1"),
}
"""What columns are called elsewhere."""


def recognise_reranking(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """Recognise a query with positives and negatives; with several of them, no other task fits."""
    named = {ours: theirs for ours, names in _KNOWN.items() if (theirs := first_of(names, columns)) is not None}
    if named.keys() < _KNOWN.keys():
        return None
    documents = [value for row in rows for ours in (POSITIVE, NEGATIVE) if (value := row.get(named[ours])) is not None]
    queries = [query for row in rows if (query := row.get(named[QUERY])) is not None]
    if not all(isinstance(query, str) for query in queries) or not all(map(_are_texts, documents)):
        return None
    by_query = {"by": "group", "column": QUERY}  # the same query stands in several rows
    if _NEGATIVE.fullmatch(named[NEGATIVE]):
        del named[NEGATIVE]
    return Recognised(3 if have_several(columns, rows) else 2, renamed(**named), split=by_query)


def check_columns(columns: Sequence[str]) -> None:
    """Refuse data without a query, positives and negatives (DataError)."""
    missing = [name for name in (QUERY, POSITIVE) if name not in columns]
    if not any(_NEGATIVE.fullmatch(name) for name in columns):
        missing.append(NEGATIVE)
    if missing:
        judged = {"query", "document", "label"} <= set(columns)
        other = " Documents with a label are for task text-classification, with kind: relevance." if judged else ""
        raise DataError(
            f"the data has no column {missing[0]!r} (columns: {column_names(columns) or 'none'}); a reranker learns "
            f"from {SHAPE}. Rename one with data.columns.{other}" + did_you_mean(missing[0], columns)
        )


def documents_of(row: Example) -> dict[str, list[str]]:
    """Return the documents of a row by column, positives first (DataError: one is empty or no text)."""
    return {name: _texts_of(row, name) for name in document_columns(row) if row.get(name) is not None}


def document_columns(row: Example) -> list[str]:
    """Return the columns of a row's documents, positives first, negatives by their numbers."""
    negatives = (name for name in row if _NEGATIVE.fullmatch(name))
    return [POSITIVE, *sorted(negatives, key=lambda name: (len(name), name))]


def sides_of(row: Example) -> tuple[list[str], list[str]]:
    """Return the positives and the negatives of a row, each text once.

    Raises DataError if one kind is missing, or if a text is both.
    """
    documents = documents_of(row)
    positives = list(dict.fromkeys(documents.pop(POSITIVE, [])))
    negatives = list(dict.fromkeys(text for texts in documents.values() for text in texts))
    if not positives:
        raise DataError(f"`{POSITIVE}` is {shown(row.get(POSITIVE))}; it must be a text, or a list of some.")
    if not negatives:
        raise DataError("the row has no negative: a reranker also learns from documents that do not answer the query.")
    if shared := next((text for text in negatives if text in positives), None):
        raise DataError(f"{shown(shared)} is both a positive and a negative of the row; remove one.")
    return positives, negatives


def replaced(row: Example, inputs: Sequence[str]) -> dict[str, object]:
    """Return a row with other texts: the query's, and those of its documents in the order of `documents_of`."""
    query, *others = inputs
    changed: dict[str, object] = {**row, QUERY: query}
    for name, texts in documents_of(row).items():
        own, others = others[: len(texts)], others[len(texts) :]
        changed[name] = own if is_list(row[name]) else own[0]
    return changed


def asked_of(row: Example) -> tuple[str, str | list[str]]:
    """Return a query and the documents to score: `document`, a text or a list, else all documents of the row.

    Raises DataError if the row has no query or no document.
    """
    query = read_text(row, QUERY)
    if row.get(DOCUMENT) is not None:
        texts = _texts_of(row, DOCUMENT)
    else:
        texts = [text for of_column in documents_of(row).values() for text in of_column]
    if not texts:
        raise DataError("the row has nothing to score: it needs `document`, a text or a list of texts.")
    is_single = row.get(DOCUMENT) is not None and not is_list(row[DOCUMENT])
    return query, texts[0] if is_single else texts


def _texts_of(row: Example, name: str) -> list[str]:
    """Return the texts of a column, stripped, so that texts which differ only in outer white space are equal."""
    texts = _listed(row, name) if is_list(row[name]) else [row[name]]
    return [read_text({name: text}, name).strip() for text in texts]


def _listed(row: Example, name: str) -> Sequence[object]:
    """Return a value; a table's cell with a list as JSON (as `ftengine predict` writes it) is parsed.

    Raises DataError if a cell looks like a list of texts but cannot be parsed.
    """
    value = row[name]
    if not isinstance(value, str):
        return value
    try:
        texts = json.loads(value)
    except (ValueError, RecursionError):
        texts = None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"`{name}` is {shown(value)}, which looks like a list but is not JSON with texts. Write it as "
            '["…", "…"], or save the rows as .jsonl with lists.'
        )
    return texts


def _are_texts(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(x, str) for x in value))
