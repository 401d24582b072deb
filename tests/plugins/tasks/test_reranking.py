"""Rows, losses and answers of task reranking."""

import json
import math
from dataclasses import replace

import pytest
import torch
from expected import raises

from ftengine import Recipe, fine_tune
from ftengine.api import LoadRequest
from ftengine.engine.export import export_run
from ftengine.errors import DataError, InputError
from ftengine.model import Criterion
from ftengine.testing import check_task
from ftengine_builtins.exporters import SentenceTransformersExporter
from ftengine_builtins.loaders.transformers import TransformersLoader
from ftengine_builtins.tasks import Embedding, Reranking
from ftengine_builtins.tasks.reranking_losses import LOSSES

TEXTS = ["The capital of France is Paris.", "Open the settings and follow the link.", "a red fox", "Shares rose."]
ROWS = [
    {"query": "What is the capital of France?", "positive": TEXTS[0], "negative": TEXTS[1]},
    {"query": "How do I reset my password?", "positive": TEXTS[1], "negative": TEXTS[2]},
    {"query": "Which animal is it?", "positive": TEXTS[2], "negative": TEXTS[3]},
]
LISTS = [
    {"query": ROWS[0]["query"], "positive": TEXTS[:1], "negative": TEXTS[1:]},
    {"query": ROWS[1]["query"], "positive": TEXTS[:2], "negative": TEXTS[2:3]},
]
NUMBERED = [{**row, "negative_1": "one more text", "negative_2": None} for row in ROWS]
KINDS = {"triplets": ROWS, "lists": LISTS, "numbered": NUMBERED}


def task(**options):
    made = Reranking(Reranking.Config(**options))
    made.labels = made.learn_labels({"train": ROWS})
    return made


@pytest.fixture(scope="module")
def load(bert_folder):
    def load(labels):
        return TransformersLoader().load(LoadRequest(str(bert_folder), "sequence-classification", labels, "float32"))

    return load


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows", KINDS)
def test_it_conforms(rows, loss, load):
    make = lambda: Reranking(Reranking.Config(loss=loss))  # noqa: E731
    check_task(make, load(task().labels).processor, KINDS[rows], load)


def test_a_task_that_promises_vectors_has_to_answer_with_them(load):
    class Promising(Reranking):
        traits = replace(Reranking.traits, answers_vectors=True)

    with pytest.raises(AssertionError, match=r"^rows_without_an_answer_are_answered: .* \[2, 3\] numbers"):
        check_task(Promising, load(task().labels).processor, [ROWS[0], NUMBERED[1]], load)


def written_out(loss, s, y):
    """Return sum and weight of one query's loss, by its paper's formula."""
    positives, negatives = ([a for a, b in zip(s, y, strict=True) if b == side] for side in (1, 0))
    if loss == "contrastive":
        e = sum(map(math.exp, negatives))
        return sum(-math.log(math.exp(p) / (math.exp(p) + e)) for p in positives), len(positives)
    if loss == "ranknet":
        return sum(math.log1p(math.exp(n - p)) for p in positives for n in negatives), len(positives) * len(negatives)
    if loss == "pointwise":
        each = [-math.log(1 / (1 + math.exp(-a if b else a))) for a, b in zip(s, y, strict=True)]
        return sum(each), len(s)
    wanted, found = ([math.exp(a) / sum(map(math.exp, x)) for a in x] for x in (y, s))
    return -sum(w * math.log(f) for w, f in zip(wanted, found, strict=True)), 1


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_equal_their_formulas_with_lists_of_other_lengths(loss):
    scores = [[0.3, -1.2, 2.0, 0.1], [1.5, -0.5], [-2.0, 0.4, 0.9]]
    labels = [[1, 0, 0, 0], [1, 0], [1, 1, 0]]
    s, y = torch.full((3, 4), 7.0, dtype=torch.float64), torch.full((3, 4), -1)
    for i, (a, b) in enumerate(zip(scores, labels, strict=True)):
        s[i, : len(a)], y[i, : len(b)] = torch.tensor(a, dtype=torch.float64), torch.tensor(b)
    s.requires_grad_()
    found = LOSSES[loss]()(s, y == 1, y == 0)
    each = [written_out(loss, a, b) for a, b in zip(scores, labels, strict=True)]
    assert [x.item() for x in map(torch.as_tensor, found)] == pytest.approx(
        [sum(column) for column in zip(*each, strict=True)], rel=1e-12
    )
    assert [w for _, w in each] == [LOSSES[loss]().weight(sum(b), len(b) - sum(b)) for b in labels]
    found[0].backward()
    assert not s.grad[y < 0].any()
    if loss != "listnet":  # which wants relevant documents to be ahead by 1, and not by more
        assert (s.grad[y == 1] < 0).all()


def test_a_loss_is_that_of_scores_that_are_asked_one_by_one(load):
    own = task(loss="ranknet")
    loaded = load(own.labels)
    loaded.module.eval()
    features = [own.encode(row, loaded.processor) for row in LISTS]
    loss, weight = own.loss(loaded.module, own.collate(features, loaded.processor), Criterion())
    scores = [one["scores"] for one in own.infer(loaded, LISTS)]
    alone = [[own.infer(loaded, [{**row, "document": text}])[0]["score"] for text in TEXTS[:4]] for row in LISTS]
    assert scores[0] == pytest.approx(alone[0], rel=1e-4, abs=1e-6)
    wanted = [written_out("ranknet", s, y) for s, y in zip(scores, ([1, 0, 0, 0], [1, 1, 0]), strict=True)]
    assert (loss.item(), weight.item()) == (pytest.approx(sum(x for x, _ in wanted), rel=1e-5), 5)


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"query": "a", "positive": "b"}, ["negative"]),
        ({"query": "a", "positive": [], "negative": "b"}, ["`positive`"]),
        ({"query": "a", "positive": "b", "negative": ["c", " "]}, ["`negative`", "empty"]),
        ({"query": "a", "positive": "b", "negative": "c", "negative_2": 3}, ["`negative_2`", "3"]),
        ({"query": None, "positive": "b", "negative": "c"}, ["`query`"]),
        ({"query": "a", "positive": "b", "negative": ["c", "b"]}, ["'b'", "positive"]),
        ({"query": "a", "positive": "b", "negative": ["c", "b "]}, ["'b'", "positive"]),
        ({"query": "a", "positive": "b", "negative": "['c', 'd']"}, ["`negative`", "['c', 'd']", "JSON"]),
        ({"query": "a", "positive": "b", "negative": '["c", 1, "d"]'}, ["`negative`", "JSON"]),
        ({"query": "a", "positive": "b", "negative": "[]"}, ["negative"]),
    ],
)
def test_rows_that_cannot_be_read_are_refused(row, facts, load):
    with raises(DataError, *facts):
        task().encode(row, load(task().labels).processor)
    assert task().view(row).identity


def test_lists_in_cells_of_a_table_are_those_lists(load):
    lists = {"query": "a", "positive": ["b"], "negative": ["c", "[d] and [e]"], "document": ["b", "c"]}
    cells = {name: value if name == "query" else json.dumps(value) for name, value in lists.items()}
    loaded = load(task().labels)
    assert task().encode(cells, loaded.processor) == task().encode(lists, loaded.processor)
    assert task().with_inputs(cells, list("1234")) == {**cells, **task().with_inputs(lists, list("1234"))} | {
        "document": cells["document"]
    }
    assert task().infer(loaded, [cells]) == task().infer(loaded, [lists])
    text = {"query": "a", "positive": "[b] and [c]", "negative": "d"}
    assert list(task().view(text).inputs) == ["a", "[b] and [c]", "d"]


@pytest.mark.parametrize(
    ("row", "certainty", "columns"),
    [
        ({"query": "a", "positive": "b", "negative": "c"}, 2, {}),
        ({"anchor": "a", "pos": "b", "neg": "c"}, 2, {"query": "anchor", "positive": "pos", "negative": "neg"}),
        ({"query": "a", "pos": ["b"], "neg": ["c", "d"]}, 3, {"positive": "pos", "negative": "neg"}),
        ({"question": "a", "positive": "b", "negative_1": "c", "negative_2": "d"}, 3, {"query": "question"}),
        ({"query": "a", "positive": "b", "negative": "c", "negative_2": "d"}, 3, {}),
        ({"query": "a", "positive": '["b", "c"]', "negative": "d"}, 3, {}),
        ({"query": "a", "positive": 3, "negative": "c"}, None, {}),
        ({"query": "a", "document": "c", "label": 1}, None, {}),
    ],
)
def test_triplets_and_lists_are_recognised(row, certainty, columns):
    found = Reranking.recognise(list(row), [row])
    assert found is None if certainty is None else (found.certainty, dict(found.columns)) == (certainty, columns)
    if certainty == 2:  # an encoder is proposed for triplets of texts, and says what else they are for
        other = Embedding.recognise(list(row), [row])
        assert other.certainty == 3
        assert "--task reranking" in other.note


def test_columns_are_named_with_the_nearest():
    for columns, facts in (
        (["query", "positve", "negative"], ["'positive'", "positve"]),
        (["query", "positive"], ["'negative'", "negative_1"]),
        (["query", "document", "label"], ["kind: relevance"]),
    ):
        with raises(DataError, *facts):
            task().check_columns(columns)


@pytest.fixture(scope="module")
def run(bert_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reranking")
    rows = [
        {**row, "query": f"{row['query']} {i}", "negative": [row["negative"], f"no {i}"]}
        for i in range(8)
        for row in ROWS
    ]
    (folder / "lists.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return fine_tune(
        Recipe.make(
            {
                "model": {"source": str(bert_folder)},
                "task": "reranking",
                "data": {"train": str(folder / "lists.jsonl"), "validation": 0.4},
                "strategy": "full",
                "train": {"max_steps": 6, "batch_size": 4, "precision": "float32", "learning_rate": 1e-3},
                "output": str(folder / "run"),
            }
        )
    )


@pytest.mark.slow
def test_a_run_is_measured_by_how_it_orders_documents(run):
    config = json.loads((run.trained / "config.json").read_text())
    assert (list(config["id2label"].values()), config["problem_type"]) == (["relevant"], "multi_label_classification")
    found = run.evaluation["tuned"]
    assert next(iter(found)) == "ndcg_at_10"
    assert 1 / 3 <= found["mrr_at_10"]["value"] <= 1
    assert found["recall_at_5"]["value"] == 1  # of three documents
    again = run.evaluate(evaluators=[{"name": "reranking", "recall": [1]}])["tuned"]
    assert again["mrr_at_10"]["value"] == found["mrr_at_10"]["value"]


@pytest.mark.slow
def test_scores_of_its_documents_are_answered_in_order(run):
    row = {**ROWS[0], "negative": TEXTS[1:3]}
    (answer,) = run.predict([row])
    each = [next(run.predict([{"query": row["query"], "document": text}]))["score"] for text in TEXTS[:3]]
    assert answer["scores"] == pytest.approx(each, rel=1e-4, abs=1e-6)
    assert list(run.predict([{"query": row["query"], "document": TEXTS[:3]}])) == [answer]
    for nothing in ({}, {"document": []}, {"document": None, "positive": [], "negative": []}):
        with raises(InputError, "document"):
            list(run.predict([{"query": "a", "document": "b"}, {"query": "a", **nothing}]))


@pytest.mark.slow
def test_it_is_exported_with_scores_as_they_are(run, tmp_path):
    export_run(run, SentenceTransformersExporter(), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.linear.Identity"
