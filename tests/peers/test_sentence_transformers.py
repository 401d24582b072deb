"""What task embedding and rerankers save opens in sentence-transformers, with the same answers."""

import json

import numpy as np
import pytest

from ftengine import Recipe, fine_tune

pytest.importorskip("sentence_transformers")

TEXTS = ["What is the capital of France?", "The capital of France is Paris, and not Lyon.", "a red fox", "Shares rose."]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    file.write_text(
        "\n".join(json.dumps({"anchor": f"{a} {i}", "positive": f"{i} {a}"}) for i in range(4) for a in TEXTS)
    )
    return file


@pytest.mark.parametrize("strategy", ["full", "lora"])
@pytest.mark.parametrize("model", ["bert_folder", "llama_folder"])
def test_vectors_are_equal(model, strategy, rows, request, tmp_path):
    from sentence_transformers import SentenceTransformer

    run = fine_tune(
        Recipe.make(
            {
                "model": {"source": str(request.getfixturevalue(model))},
                "task": {"name": "embedding", "query_prompt": "query: ", "document_prompt": "passage: "},
                "data": {"train": str(rows), "validation": 0.2},
                "strategy": strategy,
                "train": {"max_steps": 2, "batch_size": 4, "precision": "float32", "learning_rate": 1e-3},
                "output": str(tmp_path / "run"),
            }
        )
    )
    folder = run.trained
    if strategy == "lora":
        assert (folder / "adapter_config.json").is_file()
        assert not (folder / "modules.json").exists()
        folder = tmp_path / "merged"
        run.merge(folder)
    opened = SentenceTransformer(str(folder), device="cpu")
    for column, prompt, encode in (
        ("anchor", "query", opened.encode_query),
        ("positive", "document", opened.encode_document),
    ):
        ours = np.array([one["vector"] for one in run.predict([{column: text} for text in TEXTS])])
        np.testing.assert_allclose(encode(TEXTS), ours, atol=1e-5)
        np.testing.assert_allclose(opened.encode(TEXTS, prompt_name=prompt), ours, atol=1e-5)


def test_scores_of_a_reranker_are_equal(bert_folder, tmp_path):
    from sentence_transformers import CrossEncoder

    rows = [{"text": a, "document": b, "label": int(a == b)} for a in TEXTS for b in TEXTS]
    file = tmp_path / "judged.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    run = fine_tune(
        Recipe.make(
            {
                "model": {"source": str(bert_folder)},
                "task": {"name": "text-classification", "pair": "document", "kind": "relevance"},
                "data": {"train": str(file), "validation": None},
                "strategy": "full",
                "train": {"max_steps": 2, "batch_size": 4, "precision": "float32", "learning_rate": 1e-3},
                "output": str(tmp_path / "run"),
            }
        )
    )
    ours = [answer["scores"]["relevant"] for answer in run.predict(rows)]
    found = CrossEncoder(str(run.trained), device="cpu").predict([(row["text"], row["document"]) for row in rows])
    np.testing.assert_allclose(found, ours, atol=1e-5)
