"""Runs of embeddings and rerankers: measured, answered, merged, and refused before weights are read."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from expected import raises
from test_examples_meet import pairs

from ftengine import Recipe, fine_tune
from ftengine.engine.export import export_run
from ftengine.engine.predict import predict_file
from ftengine.errors import DataError, ExportDiffers
from ftengine_builtins.exporters import SentenceTransformersExporter


def recipe(model, output, data, task=None, **others):
    return Recipe.make(
        {
            "model": {"source": str(model)},
            "task": {"name": "embedding", **(task or {})},
            "data": data,
            "strategy": "lora",
            "train": {"max_steps": 2, "batch_size": 8, "precision": "float32", "learning_rate": 1e-3},
            "evaluation": {"training_sample": 8},
            "output": str(output),
            **others,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    pairs(folder / "train.jsonl")
    held = pairs(folder / "held.jsonl", 12, seed=1)
    texts = [json.loads(line)["positive"] for line in held.read_text().splitlines()]
    (folder / "corpus.txt").write_text("\n".join([*texts, "one more text", "and another"]))
    return folder


@pytest.fixture(scope="module")
def run(folder, bert_folder):
    """LoRA with held-out pairs to be found in a corpus."""
    data = {"train": str(folder / "train.jsonl"), "validation": None, "test": str(folder / "held.jsonl")}
    evaluate = [{"name": "retrieval", "corpus": str(folder / "corpus.txt"), "recall": [1, 3]}]
    return fine_tune(recipe(bert_folder, folder / "run", data, evaluate=evaluate))


@pytest.fixture(scope="module")
def prompted_run(folder, bert_folder):
    """Full tuning of an encoder with both prompts."""
    data = {"train": str(folder / "train.jsonl"), "validation": None, "test": str(folder / "held.jsonl")}
    task = {"query_prompt": "query: ", "document_prompt": "passage: ", "max_length": 64}
    more = {"evaluation": {"training_sample": None}, "strategy": "full"}
    return fine_tune(recipe(bert_folder, folder / "prompted", data, task, **more))


def test_base_and_tuned_model_rank_one_corpus(run):
    found = run.evaluation
    assert list(found["tuned"]) == ["ndcg_at_10", "mrr_at_10", "mean_average_precision", "recall_at_1", "recall_at_3"]
    for side in ("base", "tuned"):
        assert all(0 <= one["value"] <= 1 and one["n"] == 12 for one in found[side].values())
    assert found["details"]["tuned"]["retrieval"]["documents"] == 14
    assert any(display["title"] == "Recall by k" for display in found["displays"]["tuned"])
    assert 0 <= found["tuned"]["recall_at_1"]["low"] < found["tuned"]["recall_at_1"]["high"] <= 1


def test_without_its_library_an_encoder_is_written_and_reported_unverified(run, folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    made = export_run(run, SentenceTransformersExporter(), folder / "served")
    assert made.proof is None
    assert "pip install sentence-transformers" in made.unproven
    assert made.files.keys() >= {"modules.json", "config_sentence_transformers.json", "model.safetensors"}


def rewritten(name, **settings):
    """Set keys of a JSON file, or take the last item out of one that is a list."""

    def spoil(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **settings} if settings else content[:-1]))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (rewritten("sentence_bert_config.json", max_seq_length=16), ["max_seq_length is 16, measured 64"]),
        (rewritten("1_Pooling/config.json", pooling_mode_cls_token=True), ["pooling_mode_cls_token is True"]),
        (rewritten("modules.json"), ["modules.json", "2 is not set", "Normalize"]),
        (rewritten("config_sentence_transformers.json", prompts={"query": ""}), ["prompts", "'document': 'passage: '"]),
        (rewritten("config_sentence_transformers.json", default_prompt_name="query"), ["default_prompt_name"]),
        (rewritten("config_sentence_transformers.json", similarity_fn_name="dot"), ["'dot', measured 'cosine'"]),
    ],
)
def test_an_encoder_with_other_settings_is_refused_and_each_is_named(prompted_run, tmp_path, spoil, facts):
    class Spoilt(SentenceTransformersExporter):
        def export(self, source, folder):
            made = super().export(source, folder)
            spoil(folder)
            return made

    with raises(ExportDiffers, *facts):
        export_run(prompted_run, Spoilt(), tmp_path / "out", rows=2)
    assert list(tmp_path.iterdir()) == []


def test_stored_vectors_are_ranked_again_without_a_model(run):
    """Among the held-out documents; a corpus takes the model."""
    again = run.evaluate(evaluators=[{"name": "retrieval", "recall": [2]}])
    assert again["details"]["tuned"]["retrieval"]["documents"] == 12
    assert "recall_at_2" in again["tuned"]


def test_vectors_are_written_as_matrix_and_as_lists(run, folder):
    matrix, lists = folder / "vectors.npy", folder / "vectors.parquet"
    for output in (matrix, lists):
        predict_file(run, folder / "held.jsonl", output)
    found = np.load(matrix)
    assert (found.shape, found.dtype) == ((12, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    column = pq.read_table(lists)["prediction.vector"]
    assert np.array_equal(np.array(column.to_pylist(), dtype=np.float32), found)
    predict_file(run, folder / "held.jsonl", folder / "documents.npy", options={"column": "positive"})
    assert not np.allclose(np.load(folder / "documents.npy"), found)


@pytest.mark.parametrize(
    ("rows", "task", "facts"),
    [
        ([{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": None}], {}, ["data.jsonl:2", "`positive`"]),
        ([{"anchor": "a", "positive": "b"}, {"anchor": " ", "positive": "d"}], {}, ["data.jsonl:2", "`anchor`"]),
        ([{"text": f"text {i}", "label": i} for i in range(4)], {"rows": "labelled"}, ["4 labels"]),
        ([{"text": f"text {i}", "label": "a"} for i in range(4)], {"rows": "labelled"}, ["'a'"]),
        ([{"text": f"text {i}", "label": "a"} for i in range(4)], {}, ["task.rows=labelled"]),
    ],
)
def test_rows_are_refused_before_weights_are_read(rows, task, facts, bert_folder, tmp_path, no_weights):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with raises(DataError, *facts):
        fine_tune(recipe(bert_folder, tmp_path / "run", {"train": str(file), "validation": None}, task))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Queries with a document that answers and two that do not."""
    file = pairs(tmp_path_factory.mktemp("judged") / "pairs.jsonl", 12)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    judged = file.with_name("judged.jsonl")
    judged.write_text(
        "\n".join(
            json.dumps({"query": row["anchor"], "document": rows[i - away]["positive"], "label": int(not away)})
            for i, row in enumerate(rows)
            for away in range(3)
        )
    )
    return judged


def reranker(model, output, judged, **others):
    data = {"train": str(judged), "columns": {"text": "query"}, "split": {"by": "group", "column": "text"}}
    task = {"name": "text-classification", "pair": "document", "kind": "relevance"}
    return recipe(model, output, {**data, "validation": 0.4}, task, **others)


def test_a_reranker_has_one_output_and_is_measured_by_query(judged, bert_folder, tmp_path):
    run = fine_tune(reranker(bert_folder, tmp_path / "run", judged, strategy="full"))
    config = json.loads((run.trained / "config.json").read_text())
    assert (list(config["id2label"].values()), config["problem_type"]) == (["relevant"], "multi_label_classification")
    found = run.evaluation["tuned"]
    assert next(iter(found)) == "ndcg_at_10"  # by which the verdict goes
    assert "subset_accuracy" not in found
    assert 1 / 3 <= found["mrr_at_10"]["value"] <= 1
    assert found["recall_at_5"]["value"] == 1  # of three documents
    (answer,) = run.predict([{"text": "a red fox", "document": "a fox"}])
    assert 0 < answer["scores"]["relevant"] < 1


def test_labels_of_a_reranker_are_1_and_0(judged, bert_folder, tmp_path, no_weights):
    rows = [json.loads(line) for line in judged.read_text().splitlines()]
    for label, fact in ((1, "every"), (0, "1 nowhere"), (3, "3")):
        file = tmp_path / f"{label}.jsonl"
        file.write_text("\n".join(json.dumps({**row, "label": label}) for row in rows))
        with raises(DataError, fact):
            fine_tune(reranker(bert_folder, tmp_path / f"run-{label}", file))
