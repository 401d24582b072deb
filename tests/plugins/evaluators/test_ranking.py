"""Figures of rankings and of similarities against scikit-learn, SciPy and formulas written out."""

import json

import numpy as np
import pytest
from expected import raises
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, ndcg_score

from ftengine.errors import DataError, InputError
from ftengine.testing.evaluators import check_evaluator
from ftengine_builtins.evaluators import Reranking, Retrieval, Similarity, Triplets
from ftengine_builtins.tasks.embedding_rows import id_of

DRAW = np.random.default_rng(0)
N, D = 40, 6


def predictions(labels=None, documents=None):
    """Return what task embedding predicts: of pairs, or of labelled texts."""
    queries = DRAW.normal(size=(N, D))
    vectors = queries if labels is not None else queries + DRAW.normal(size=(N, D))
    documents = list(range(100, 100 + N)) if documents is None else documents
    ids = documents if labels is not None else list(range(N))
    return [
        {
            "query_vector": queries[i].tolist(),
            "document_vector": vectors[i].tolist(),
            "query_id": ids[i],
            "document_id": documents[i],
            "match_id": i if labels is None else labels[i],
        }
        for i in range(N)
    ]


def kept(rows, evaluator):
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {**columns, **evaluator.keep_together(columns, None)}


def truth(rows, leave_out=False):
    """Return for each query the cosines with distinct documents, and which of them are right."""
    first = {row["document_id"]: row["document_vector"] for row in rows[::-1]}
    for row in rows:
        mine = {other["document_id"] for other in rows if other["match_id"] == row["match_id"]}
        ids = [one for one in first if not (leave_out and one == row["query_id"])]
        a, b = np.array(row["query_vector"]), np.array([first[one] for one in ids])
        yield b @ a / np.linalg.norm(a) / np.linalg.norm(b, axis=1), np.array([one in mine for one in ids])


@pytest.mark.parametrize("kind", ["pairs", "repeated", "labelled"])
def test_rankings_equal_scikit_learn(kind):
    labels = [i % 5 for i in range(N)] if kind == "labelled" else None
    rows = predictions(labels)
    if kind == "repeated":  # queries with 1, 3, 5, … documents, documents with several queries
        for i, row in enumerate(rows):
            first = int(i**0.5)
            row["query_id"] = row["match_id"] = first
            row["query_vector"] = rows[first**2]["query_vector"]
        rows[7] |= {name: rows[3][name] for name in ("document_id", "document_vector")}
    evaluator = Retrieval(Retrieval.Config(k=10, recall=[1, 3]))
    found = evaluator.score(kept(rows, evaluator), np.ones(N))
    firsts = np.unique([row["query_id"] for row in rows], return_index=True)[1]
    every = [each for i, each in enumerate(truth(rows, leave_out=kind == "labelled")) if i in firsts]
    ranked = [right[np.argsort(-scores)] for scores, right in every]
    wanted = {
        "ndcg_at_10": np.mean([ndcg_score([right], [scores], k=10) for scores, right in every]),
        "mean_average_precision": np.mean([average_precision_score(right, scores) for scores, right in every]),
        "mrr_at_10": np.mean([1 / (x[:10].argmax() + 1) if x[:10].any() else 0 for x in ranked]),
        **{f"recall_at_{k}": np.mean([x[:k].sum() / x.sum() for x in ranked]) for k in (1, 3)},
    }
    assert found == pytest.approx(wanted, rel=1e-6)
    assert 0.05 < wanted["ndcg_at_10"] < 0.95


@pytest.mark.parametrize("positives", [1, 3, 9])
def test_a_query_counts_once_however_many_documents_it_has(positives):
    """The second finds its only document behind all of the first's."""
    vectors = [[1.0, 0.001 * i] for i in range(positives)]
    rows = [
        {"query_vector": [1.0, 0.0], "document_vector": x, "query_id": 0, "document_id": 10 + i, "match_id": 0}
        for i, x in enumerate(vectors)
    ]
    rows.append(
        {"query_vector": [1.0, 0.0], "document_vector": [-1.0, 0.0], "query_id": 1, "document_id": 9, "match_id": 1}
    )
    columns = kept(rows, Retrieval())
    found = Retrieval().score(columns, np.ones(len(rows)))
    assert found["mean_average_precision"] == pytest.approx((1 + 1 / (positives + 1)) / 2)
    assert Retrieval().example_weights(columns)["ndcg_at_10"].sum() == 2


def test_a_query_without_another_of_its_label_is_not_measured():
    rows = predictions([0, *(1 + i % 3 for i in range(N - 1))])
    evaluator = Retrieval()
    columns = kept(rows, evaluator)
    assert np.isnan(columns["rank"][0])
    assert not np.isnan(columns["rank"][1:]).any()
    assert np.isfinite(evaluator.score(columns, np.ones(N))["mean_average_precision"])


def test_recall_of_one_document_a_query_is_a_proportion():
    rows, evaluator = predictions(), Retrieval()
    assert set(evaluator.trials(kept(rows, evaluator))) == {f"recall_at_{k}" for k in (1, 5, 10, 100)}
    labelled = predictions([i % 5 for i in range(N)])
    assert evaluator.trials(kept(labelled, evaluator)) == {}


def test_a_corpus_is_what_is_ranked_and_has_to_hold_what_is_right(tmp_path):
    texts = [f"document {i}" for i in range(N)]
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in [*texts, "another one", texts[0]]))
    rows = predictions(documents=[id_of(text) for text in texts])
    vectors = {text: row["document_vector"] for text, row in zip(texts, rows, strict=True)}
    vectors["another one"] = (9 * np.array(rows[0]["query_vector"])).tolist()  # the nearest to the first query
    evaluator = Retrieval(Retrieval.Config(corpus=str(file)))
    evaluator.check_options()
    evaluator.check_row({"positive": texts[1]})
    with raises(DataError, "corpus.jsonl"):
        evaluator.check_row({"positive": "document 40"})
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def answer(asked):
        return [{"vector": vectors[row["document"]]} for row in asked]

    alone = Retrieval().keep_together(columns, None)
    found = evaluator.keep_together(columns, answer)
    assert found["documents"][0] == N + 1
    assert found["rank"][0] == alone["rank"][0] + 1
    with raises(InputError, "retrieval"):
        evaluator.keep_together(columns, None)
    assert evaluator.metrics["mean_average_precision"].relative is False
    for cls in (Retrieval, Reranking):
        assert cls().metrics["mean_average_precision"].relative is True


@pytest.mark.parametrize("content", ["", '{"text": ""}\n', '{"other": "a"}\n', "{", None])
def test_a_corpus_without_documents_is_refused(content, tmp_path):
    file = tmp_path / "corpus.jsonl"
    if content is not None:
        file.write_text(content)
    with raises(DataError, "corpus.jsonl"):
        Retrieval(Retrieval.Config(corpus=str(file))).check_options()


def test_triplets_count_nearer_positives():
    rows = [{**row, "negative_vector": DRAW.normal(size=D).tolist()} for row in predictions()]
    found = Triplets().score(kept(rows, Triplets()), np.ones(N))["triplet_accuracy"]
    unit = [{name: np.array(x) / np.linalg.norm(x) for name, x in row.items() if "vector" in name} for row in rows]
    near = [r["query_vector"] @ r["document_vector"] > r["query_vector"] @ r["negative_vector"] for r in unit]
    assert found == pytest.approx(np.mean(near))
    assert 0.5 < found < 1


def test_correlations_equal_scipy_for_repeated_rows():
    rows = {"similarity": DRAW.normal(size=N).round(1), "score": DRAW.integers(0, 4, N) / 4}
    weights = DRAW.poisson(1, N)
    x, y = (np.repeat(column, weights) for column in rows.values())
    found = Similarity().score(rows, weights)
    assert found["spearman"] == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert found["pearson"] == pytest.approx(pearsonr(x, y).statistic, abs=1e-12)
    assert np.isnan(Similarity().score({**rows, "similarity": np.ones(N)}, weights)["spearman"])


@pytest.mark.parametrize("constant", ["similarity", "score"])
@pytest.mark.parametrize("value", [0.1, 0.7, 1e6 + 0.1])
def test_what_varies_by_rounding_alone_has_no_correlation(constant, value):
    for n in (7, 11, 30):
        rows = {"similarity": DRAW.normal(size=n), "score": DRAW.normal(size=n)}
        found = Similarity().score({**rows, constant: np.full(n, value)}, np.ones(n))
        assert np.isnan([found["pearson"], found["spearman"]]).all()


@pytest.mark.parametrize(
    ("cls", "rows"),
    [
        (Retrieval, predictions()),
        (Triplets, [{**row, "negative_vector": DRAW.normal(size=D).tolist()} for row in predictions()]),
        (Similarity, [{"similarity": float(x), "score": float(y)} for x, y in DRAW.normal(size=(12, 2))]),
    ],
)
def test_evaluators_conform(cls, rows):
    check_evaluator(cls, rows)


def test_lists_of_several_rows_of_a_query_are_one_list_in_which_a_document_stands_once():
    """A negative of one row that is a positive of another is relevant; against scikit-learn, by query."""
    scores = DRAW.normal(size=8).tolist()
    lists = [("a", [0, 1, 2], [1, 0, 0]), ("b", [3, 4], [1, 0]), ("a", [5, 0, 1, 6], [1, 0, 0, 0]), ("c", [7], [0])]
    rows = {
        "scores": np.array([[scores[i] for i in ids] for _, ids, _ in lists], dtype=object),
        "label": np.array([labels for *_, labels in lists], dtype=object),
        "document_ids": np.array([ids for _, ids, _ in lists], dtype=object),
        "query": np.array([query for query, *_ in lists], dtype=object),
        "text": np.full(4, np.nan),
    }
    columns = {**rows, **Reranking().keep_together(rows, None)}
    found = Reranking().score(columns, np.ones(4))
    merged = [([0, 1, 2, 5, 6], [1, 0, 0, 1, 0]), ([3, 4], [1, 0])]
    asked = [([labels], [[scores[i] for i in ids]]) for ids, labels in merged]
    assert found["ndcg_at_10"] == pytest.approx(np.mean([ndcg_score(y, s, k=10) for y, s in asked]), rel=1e-6)
    precision = [average_precision_score(y[0], s[0]) for y, s in asked]
    assert found["mean_average_precision"] == pytest.approx(np.mean(precision), rel=1e-6)
    assert np.isnan(columns["rank"]).tolist() == [False, False, True, True]
    twice = Reranking().score(columns, np.array([2, 0, 0, 0]))["mean_average_precision"]
    assert twice == pytest.approx(precision[0])
