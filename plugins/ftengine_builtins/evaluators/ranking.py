"""Figures of rankings: documents of each query, ordered by vectors or by a score of each pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from ftengine import api
from ftengine.api import ExampleScores, Line, LineChart, Metric
from ftengine.data import text_lines
from ftengine.errors import DataError, InputError, RecipeError
from ftengine.text import counted
from ftengine_builtins.evaluators.base import WeightedEvaluator, higher, share
from ftengine_builtins.evaluators.weighted import means, numbers
from ftengine_builtins.tasks.embedding_rows import DOCUMENTS, id_of
from ftengine_builtins.tasks.modes import TOGETHER

QUERIES = ("query", "text")
"""Columns of queries, by task."""
BLOCK = 512
"""Queries whose cosines with all documents are held at a time."""


class RankingConfig(api.Config):
    """Options of evaluators of rankings."""

    k: int = Field(10, ge=1, description="value of k for nDCG@k and MRR@k")
    recall: list[int] = Field([1, 5, 10, 100], min_length=1, description="values of k for recall@k")


def declared(k: int, recall: Sequence[int], *, relative: bool = False) -> dict[str, Metric]:
    """Declare the figures of a ranking."""
    figure = partial(higher, relative=relative)
    return {
        f"ndcg_at_{k}": figure(f"nDCG@{k}", "How high the right documents stand, 1 where they are the first."),
        f"mrr_at_{k}": figure(f"MRR@{k}", "Mean of 1 / rank of the first right document."),
        "mean_average_precision": figure("MAP", "Mean over right documents of the share of right ones down to it."),
        **{
            f"recall_at_{at}": figure(f"recall@{at}", f"Share of the right documents among the first {at}.")
            for at in sorted(set(recall))
        },
    }


class RankingEvaluator(WeightedEvaluator):
    """Means over queries of figures that are kept in each query's first row, and are nan in its other rows.

    So a resample of queries keeps the corpus whole, and a query counts once, even if it has several rows.
    """

    Config = RankingConfig
    metrics = declared(10, (1, 5, 10, 100))
    relative = True
    """Whether what is ranked depends on which examples are measured together."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.metrics = declared(self.config.k, self.config.recall, relative=self.relative)

    def figures(self, ranks: np.ndarray, right: int) -> list[float]:
        """Return the figures of a query, in the order of `metrics`, from the ascending ranks of its right documents.

        `right` is the number of right documents. With r_i the i-th rank: nDCG@k = Σ_{r≤k} 1/log₂(r+1) over that of the
        best ranking (Järvelin & Kekäläinen 2002, doi:10.1145/582415.582418), MRR@k = 1/r_1 or 0, MAP = mean of i / r_i.
        """
        k = self.config.k
        if not right:
            return [np.nan] * len(self.metrics)
        best = (1 / np.log2(np.arange(2, min(k, right) + 2))).sum()
        gained = (1 / np.log2(ranks[ranks <= k] + 1)).sum()
        first = 1 / ranks[0] if ranks[0] <= k else 0.0
        precision = (np.arange(1, len(ranks) + 1) / ranks).sum() / right
        recall = [(ranks <= at).sum() / right for at in sorted(set(self.config.recall))]
        return [float(x) for x in (gained / best, first, precision, *recall)]

    def by_metric(self, rows: Any) -> dict[str, np.ndarray]:
        """Return (n,) by metric.

        Nan for rows that are not their query's first, or whose query has no right document.
        """
        return dict(zip(self.metrics, numbers(rows["figures"]).T, strict=True))

    def score_resamples(self, rows, weights):
        return dict(zip(self.metrics, means(weights, *self.by_metric(rows).values()).T, strict=True))

    def example_weights(self, rows):
        """Return 1 for a query's first row and 0 for its others."""
        return {name: (~np.isnan(x)).astype(np.float64) for name, x in self.by_metric(rows).items()}

    def score_examples(self, rows):
        """Score 1 / rank of the first right document; right if it is the first of the list."""
        rank = np.asarray(rows["rank"], dtype=np.float64)
        return ExampleScores(1 / rank, np.where(np.isnan(rank), np.nan, rank == 1))

    def details(self, rows, estimate):
        """Yield recall by k, and how many documents there are."""
        names = [f"recall_at_{k}" for k in sorted(set(self.config.recall))]
        columns = [self.by_metric(rows)[name] for name in names]
        estimates = estimate(lambda weights: means(weights, *columns))
        points = tuple(
            (float(name.removeprefix("recall_at_")), estimated.value)
            for name, estimated in zip(names, estimates, strict=True)
            if np.isfinite(estimated.value)
        )
        if points:
            yield LineChart(title="Recall by k", x_label="k", y_label="recall@k", lines=(Line(name="", points=points),))
        if "documents" in rows and len(rows["documents"]):
            yield "documents", int(np.max(rows["documents"]))


class Retrieval(RankingEvaluator):
    """nDCG, MRR, MAP and recall of finding each query's documents by the cosine of vectors.

    Documents are the distinct ones of the measured rows, or those of a corpus file. Right are those of the query's own
    row, of rows with an equal query, or with the same label, without the query's own text. Equal cosines are ordered by
    a hash of the text.
    """

    name = "retrieval"
    reads = frozenset({"query_vector", "document_vector", "query_id", "document_id", "match_id"})

    class Config(RankingConfig):
        corpus: str | None = Field(
            None,
            min_length=1,
            description="file of documents to find, JSONL with `positive`, `document` or `text`, or .txt "
            "with one a line; it has to hold the positive of every row; null: those that are measured",
        )

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.columns = frozenset({"positive"}) if self.config.corpus else frozenset()
        self.corpus: dict[str, int] = {}

    @property
    def relative(self) -> bool:
        return self.config.corpus is None

    def check_options(self) -> None:
        if self.config.corpus:
            self.corpus = {text: id_of(text) for text in read_corpus(self.config.corpus)}

    def check_row(self, row):
        if self.config.corpus and row.get("positive") not in self._documents():
            raise DataError(
                f"its positive is not among the {counted(len(self._documents()), 'document')} of the corpus "
                f"{self.config.corpus!r}, so that it could not be found. Add it there, or take the row out."
            )

    def keep_together(self, rows, answer):
        """Return in each query's first row its figures and the rank of its first relevant document."""
        queries, query_ids = unit(rows["query_vector"]), np.asarray(rows["query_id"])
        own, places = np.unique(rows["document_id"], return_index=True)
        ids, vectors = own, unit(rows["document_vector"])[places]
        if self.config.corpus:
            ids, vectors = self._of_corpus(answer)
        place = {id_: i for i, id_ in enumerate(ids.tolist())}
        right: dict[int, set[int]] = {}
        for match, document in zip(rows["match_id"].tolist(), rows["document_id"].tolist(), strict=True):
            right.setdefault(match, set()).add(place[document])
        figures = np.full((len(queries), len(self.metrics)), np.nan)
        rank = np.full(len(queries), np.nan)
        _, first = np.unique(query_ids, return_index=True)
        for start in range(0, len(first), BLOCK):
            places = first[start : start + BLOCK]
            for i, cosines in zip(places.tolist(), queries[places] @ vectors.T, strict=True):
                mine = right[int(rows["match_id"][i])] - {place.get(int(query_ids[i]), -1)}
                if (itself := place.get(int(query_ids[i]))) is not None:
                    cosines[itself] = -np.inf
                ranks = ranks_of(cosines, np.fromiter(mine, np.int64, len(mine)))
                figures[i] = self.figures(ranks, len(mine))
                rank[i] = ranks[0] if len(ranks) else np.nan
        return {"figures": figures, "rank": rank, "documents": np.full(len(queries), len(ids))}

    def trials(self, rows):
        """Treat recall as a proportion if each query has one right document."""
        known = {name: metric for name, metric in self.metrics.items() if name.startswith("recall")}
        values = {name: x for name, x in self.by_metric(rows).items() if name in known}
        whole = all(np.isin(x[~np.isnan(x)], (0, 1)).all() for x in values.values())
        return {name: float((~np.isnan(x)).sum()) for name, x in values.items()} if whole else {}

    def _documents(self) -> dict[str, int]:
        if not self.corpus:
            self.check_options()
        return self.corpus

    def _of_corpus(self, answer: Callable[[Sequence[Any]], Sequence[Mapping[str, Any]]] | None) -> Any:
        """Return ids (m,) in order and unit vectors (m, d) of the corpus, which the model computes."""
        if answer is None:
            raise InputError(
                "evaluator 'retrieval' with a corpus asks the model for its vectors, so it cannot be computed from "
                "saved predictions. Add it to recipe key 'evaluate' and train again, or take evaluator.corpus out."
            )
        texts = sorted(self._documents(), key=len)
        vectors: list[list[float]] = []
        for start in range(0, len(texts), TOGETHER):
            vectors += [x["vector"] for x in answer([{"document": text} for text in texts[start : start + TOGETHER]])]
        ids = np.array([self.corpus[text] for text in texts], dtype=np.int64)
        order = np.argsort(ids)
        return ids[order], unit(np.array(vectors, dtype=np.float32))[order]


class Reranking(RankingEvaluator):
    """nDCG, MRR, MAP and recall of ordering each query's own documents by the score of each pair.

    A query's rows are drawn together, whatever their groups, and a document that several of them list counts once.
    Queries without a relevant document are left out. Few documents make an easy list, so figures of two sets of rows
    cannot be compared.
    """

    name = "reranking"
    reads = frozenset({"scores", "label"})

    class Config(RankingConfig):
        query: str | None = Field(
            None, min_length=1, description="column of the query; null: `query`, or `text` where a row has none"
        )

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._queries = (self.config.query,) if self.config.query else QUERIES
        self.columns = frozenset(self._queries)

    def set_labels(self, task, labels):
        if labels is None or labels.kind != "multi" or len(labels.names) != 1:
            raise RecipeError(
                f"evaluator 'reranking' needs one output a pair, and task {task!r} has other labels. Take "
                "task reranking, set task.kind=relevance, or take it out of recipe key 'evaluate'."
            )

    def check_row(self, row):
        if not any(isinstance(row.get(name), str) for name in self._queries):
            raise DataError(
                f"evaluator 'reranking' finds no query in column {' or '.join(map(repr, self._queries))}. Name it with "
                "its option query."
            )

    def keep_together(self, rows, answer):
        """Return with each query's first row its figures and the rank of its first relevant document."""
        n = len(rows["scores"])
        found = [rows[name] for name in self._queries if name in rows]
        queries = [next(text for text in texts if isinstance(text, str)) for texts in zip(*found, strict=True)]
        _, first, codes = np.unique(queries, return_index=True, return_inverse=True)
        documents, query = _listed(rows, codes)
        figures, rank = np.full((n, len(self.metrics)), np.nan), np.full(n, np.nan)
        order = np.argsort(query, kind="stable")
        ends = np.searchsorted(query[order], np.arange(1, len(first)))
        for place, mine in zip(first, np.split(order, ends), strict=True):
            right = np.flatnonzero(documents["label"][mine] > 0)
            ranks = lowest_ranks(documents["scores"][mine], right)
            figures[place] = self.figures(ranks, len(right))
            rank[place] = ranks[0] if len(ranks) else np.nan
        return {"figures": figures, "rank": rank, "first": np.isin(np.arange(n), first)}


class Triplets(WeightedEvaluator):
    """Share of the triplets whose positive is nearer to the anchor than the negative, by cosine."""

    name = "triplets"
    reads = frozenset({"query_vector", "document_vector", "negative_vector"})
    metrics = {  # noqa: RUF012
        "triplet_accuracy": share(
            "triplet accuracy", "Share of the triplets whose positive is nearer than the negative."
        )
    }

    def keep_together(self, rows, answer):
        query, near, far = (unit(rows[f"{name}_vector"]) for name in ("query", "document", "negative"))
        return {"margin": ((query * near).sum(axis=1) - (query * far).sum(axis=1)).astype(np.float64)}

    def score_resamples(self, rows, weights):
        return {"triplet_accuracy": means(weights, rows["margin"] > 0)[:, 0]}

    def score_examples(self, rows):
        """Score the difference of the two cosines."""
        return ExampleScores(rows["margin"], (rows["margin"] > 0).astype(np.float64))


def _listed(rows: Any, codes: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return score, label and query of every document that rows list, (m,) each.

    `codes` are the rows' queries. Of a query's equal documents, by their ids, a relevant one is kept.
    """
    sizes = [len(scores) for scores in rows["scores"]]
    documents = {name: np.concatenate([*rows[name]]) for name in ("scores", "label")}
    query = np.repeat(codes, sizes)
    if "document_ids" in rows:
        order = np.argsort(-documents["label"], kind="stable")
        pairs = np.stack([query, np.concatenate([*rows["document_ids"]])], axis=1)[order]
        chosen = np.sort(order[np.unique(pairs, axis=0, return_index=True)[1]])
        documents, query = {name: x[chosen] for name, x in documents.items()}, query[chosen]
    return documents, query


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return (n, d) float32 of length 1; zeros stay zeros."""
    vectors = numbers(vectors).astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def ranks_of(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the ascending ranks, from 1, of some positions among scores (m,); of equal scores the first is first."""
    if not len(chosen):
        return np.empty(0, dtype=np.int64)
    rank = np.empty(len(scores), dtype=np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return np.sort(rank[chosen])


def lowest_ranks(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the ascending ranks of some positions among scores (m,), after all others with equal scores.

    So a model that gives all documents one score is not right by the order of the file.
    """
    others = np.setdiff1d(np.arange(len(scores)), chosen)
    order = np.concatenate([others, chosen])
    return ranks_of(scores[order], np.arange(len(others), len(order)))


def read_corpus(path: str) -> list[str]:
    """Return the texts of a corpus file (DataError: it is missing, or a line holds no text)."""
    texts = []
    try:
        for number, line, broken in text_lines(path):
            if not line.strip():
                continue
            text: Any = line.strip()
            if path.lower().removesuffix(".gz").endswith((".jsonl", ".json")):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}:{number}: no JSON: {error}.") from None
                row = row if isinstance(row, dict) else {}
                text = next((row[name] for name in (*DOCUMENTS, "text") if row.get(name) is not None), None)
            if broken is not None or not isinstance(text, str) or not text.strip():
                raise DataError(
                    f"{path}:{number}: no text of a document; give `positive`, `document` or `text` in JSON, or lines "
                    "of a .txt file."
                )
            texts.append(text)
    except OSError as error:
        raise DataError(f"the corpus {path!r} cannot be read: {error.strerror or error}.") from None
    if not texts:
        raise DataError(f"the corpus {path!r} holds no document.")
    return texts
