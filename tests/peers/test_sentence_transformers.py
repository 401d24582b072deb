"""What task embedding and rerankers save opens in sentence-transformers, with the same answers."""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from expected import raises
from safetensors.torch import load_file, save_file

from ftengine import Recipe, fine_tune, hookimpl, registry_of
from ftengine.api import Callback
from ftengine.engine.export import export_run
from ftengine.errors import ExportDiffers
from ftengine_builtins.exporters import SentenceTransformersExporter

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


@pytest.fixture(scope="module")
def still_reranker(bert_folder, tmp_path_factory):
    """A cross-encoder with its head, and without dropout."""
    folder = tmp_path_factory.mktemp("reranker")
    base = shutil.copytree(bert_folder, folder / "base")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (base / "config.json").write_text(json.dumps({**json.loads((base / "config.json").read_text()), **still}))
    # Scores of a random model hardly differ, and then neither do gradients from rounding.
    tensors = load_file(base / "model.safetensors")
    larger = {name: x * (5 if x.dim() == 2 else 1) for name, x in tensors.items()}
    save_file(larger, base / "model.safetensors", {"format": "pt"})
    return first_step(base, [listed(2, seed=i) for i in range(8)], "contrastive", folder)[0].trained


def listed(negatives, positives=1, *, seed):
    """Return a row of a query with so many documents, of words drawn at random."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(" ".join(TEXTS).split(), k=6)) for _ in range(1 + positives + negatives)]
    return {"query": texts[0], "positive": texts[1 : 1 + positives], "negative": texts[1 + positives :]}


def first_step(model, rows, loss, folder):
    """Train a step; return the run, its loss, and the gradients by parameter's name."""
    gradients = {}

    class Gradients(Callback):
        name = "gradients"

        def on_pre_optimizer_step(self, event):
            gradients.update({name: p.grad.clone() for name, p in event.model.named_parameters()})

    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = fine_tune(
        Recipe.make(
            {
                "model": {"source": str(model)},
                "task": {"name": "reranking", "loss": loss},
                "data": {"train": str(folder / "rows.jsonl"), "validation": None},
                "strategy": "full",
                "train": {"max_steps": 1, "batch_size": 2, "accumulate": 4, "precision": "float32"}
                | {"max_grad_norm": None, "learning_rate": 1e-3},
                "callbacks": ["gradients"],
                "output": str(folder / "run"),
            }
        ),
        registry=registry_of({"b": SimpleNamespace(ftengine_callbacks=hookimpl(lambda: [Gradients]))}),
    )
    return run, next(line["loss"] for line in run.metrics if "loss" in line), gradients


@pytest.mark.parametrize("loss", ["contrastive", "ranknet", "listnet", "pointwise"])
def test_a_rerankers_first_step_is_theirs(still_reranker, loss, tmp_path):
    """Loss and gradients of rows in four micro-batches; lists of other lengths where theirs takes them."""
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import losses

    ragged = loss in ("ranknet", "listnet")
    rows = [listed(3 + i % 3 * ragged, 1 + i % 2 * ragged, seed=i) for i in range(8)]
    _, ours, found = first_step(still_reranker, rows, loss, tmp_path)
    model = CrossEncoder(str(still_reranker), device="cpu").train()
    queries = [row["query"] for row in rows]
    documents = [row["positive"] + row["negative"] for row in rows]
    labels = [torch.tensor([1.0] * len(row["positive"]) + [0.0] * len(row["negative"])) for row in rows]
    if loss == "contrastive":
        own = losses.MultipleNegativesRankingLoss(model, scale=1, activation_fn=None)
        own.get_in_batch_negatives = lambda anchors, candidates: iter(())  # drawn at random; none cannot be asked for
        theirs = own([queries, *map(list, zip(*documents, strict=True))], None)
    elif loss == "pointwise":
        pairs = zip(*((query, x) for query, texts in zip(queries, documents, strict=True) for x in texts), strict=True)
        theirs = losses.BinaryCrossEntropyLoss(model)([*map(list, pairs)], torch.cat(labels))
    else:
        base = {"reduction_log": "natural"} if loss == "ranknet" else {}
        of = losses.RankNetLoss if loss == "ranknet" else losses.ListNetLoss
        theirs = of(model, **base)([queries, documents], labels)
    theirs.backward()
    assert ours == pytest.approx(theirs.item(), rel=1e-6)
    wanted = {name: p.grad for name, p in model[0].auto_model.named_parameters() if p.grad is not None}
    assert wanted.keys() == found.keys()
    size = sum(x.square().sum() for x in wanted.values()).sqrt()
    assert size > 1e-3
    apart = sum((x - found[name]).square().sum() for name, x in wanted.items()).sqrt()
    assert (apart / size).item() < 1e-5


def test_scores_of_a_reranker_of_lists_are_equal(still_reranker, tmp_path):
    """As they are, not from 0 to 1; the exported folder proves it."""
    from sentence_transformers import CrossEncoder

    rows = [listed(2, seed=i) for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = tuned(still_reranker, tmp_path / "rows.jsonl", "reranking", tmp_path / "run")
    made = export_run(run, SentenceTransformersExporter(), tmp_path / "out")
    assert (made.proof.decision, made.proof.from_tuned < 1e-5 < made.proof.from_base) == ("tuned", True)
    ours = [one["score"] for one in run.predict([{"query": text, "document": TEXTS[2]} for text in TEXTS])]
    found = CrossEncoder(str(tmp_path / "out"), device="cpu").predict([(text, TEXTS[2]) for text in TEXTS])
    np.testing.assert_allclose(found, ours, rtol=1e-5, atol=1e-6)
    assert min(ours) < 0 or max(ours) > 1


def tuned(model, data, task, output, **train):
    return fine_tune(
        Recipe.make(
            {
                "model": {"source": str(model)},
                "task": task,
                "data": {"train": str(data), "validation": 0.4},
                "strategy": "lora",
                "train": {"max_steps": 8, "batch_size": 4, "precision": "float32", "learning_rate": 0.02, **train},
                "output": str(output),
            }
        )
    )


@pytest.fixture(scope="module")
def encoder(bert_folder, rows, tmp_path_factory):
    task = {"name": "embedding", "query_prompt": "query: ", "document_prompt": "passage: ", "max_length": 9}
    return tuned(bert_folder, rows, task, tmp_path_factory.mktemp("encoder") / "run")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_encoder_proves_itself(encoder, tmp_path, dtype):
    exporter = SentenceTransformersExporter(SentenceTransformersExporter.Config(dtype=dtype))
    made = export_run(encoder, exporter, tmp_path / "out")
    proof = made.proof
    assert proof.runtime.startswith("sentence-transformers ")
    assert proof.decision == "tuned"
    assert proof.from_tuned < proof.noise < proof.from_base
    assert (made.facts["max_seq_length"], made.facts["dtype"]) == (9, dtype)
    assert {"modules.json", "README.md", "1_Pooling/config.json"} <= made.files.keys()
    assert "SentenceTransformer(" in (tmp_path / "out" / "README.md").read_text()


def test_an_exported_reranker_proves_itself_and_reads_as_many_tokens_as_in_training(bert_folder, tmp_path):
    base = shutil.copytree(bert_folder, tmp_path / "base")
    told = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    (base / "config.json").write_text(json.dumps({**json.loads((base / "config.json").read_text()), **told}))
    (base / "chat_template.jinja").write_text("{% for one in messages %}{{ one.role }} {{ one.content }}{% endfor %}")
    pairs = [{"text": f"{a} {i}", "document": b, "label": int(a == b)} for a in TEXTS for b in TEXTS for i in range(3)]
    file = tmp_path / "judged.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs)))
    task = {"name": "text-classification", "pair": "document", "kind": "relevance", "max_length": 10}
    made = export_run(tuned(base, file, task, tmp_path / "run"), SentenceTransformersExporter(), tmp_path / "out")
    assert (made.proof.decision, made.proof.from_tuned < 1e-5 < made.proof.from_base) == ("tuned", True)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 10


@pytest.mark.parametrize("said", [None, "", "like: "])
def test_a_default_prompt_of_the_base_is_one_of_what_is_exported(bert_folder, tmp_path, said):
    """Of scored pairs, which are neither queries nor documents: `encode` without a word puts it in front."""
    from sentence_transformers import SentenceTransformer

    base = shutil.copytree(bert_folder, tmp_path / "base")
    about = {"prompts": {"s2s": "same: "}, "default_prompt_name": "s2s"}
    (base / "config_sentence_transformers.json").write_text(json.dumps(about))
    rows = [
        {"sentence1": f"{a} {i}", "sentence2": b, "score": float(a == b)} for a in TEXTS for b in TEXTS for i in (1, 2)
    ]
    file = tmp_path / "scored.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    task = {"name": "embedding", "rows": "scored", "query_prompt": said}
    run = tuned(base, file, task, tmp_path / "run")
    made = export_run(run, SentenceTransformersExporter(), tmp_path / "out")
    assert made.proof.decision == "tuned"
    opened = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    prompt = "same: " if said is None else said
    told = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    assert (told["default_prompt_name"], told["prompts"]["query"]) == ("query" if prompt else None, prompt)
    ours = np.array([one["vector"] for one in run.predict([{"sentence1": text} for text in TEXTS])])
    bare = [one["vector"] for one in run.predict([{"sentence1": text} for text in TEXTS], options={"prompt": "none"})]
    for found in (opened.encode(TEXTS), opened.encode_query(TEXTS)):
        np.testing.assert_allclose(found, ours, atol=1e-5)
    np.testing.assert_allclose(opened.encode(TEXTS, prompt=""), bare, atol=1e-5)
    assert bool(np.abs(ours - bare).max() > 1e-3) is bool(prompt)


def rewritten(name, **settings):
    def spoil(folder, base):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))

    return spoil


def without_normalisation(folder, base):
    file = folder / "modules.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:-1]))


ABOUT, POOLING = "config_sentence_transformers.json", "1_Pooling/config.json"
BOTH = {"query": "query: ", "document": "passage: "}


def with_the_bases_weights(folder, base):
    own, theirs = load_file(folder / "model.safetensors"), load_file(Path(base) / "model.safetensors")
    (folder / "model.safetensors").unlink()  # it may be the merged folder's too
    save_file({name: theirs.get(name, x) for name, x in own.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (rewritten(ABOUT, prompts={**BOTH, "document": ""}), "not the tuned model"),
        (rewritten(ABOUT, prompts={**BOTH, "query": ""}), "not the tuned model"),
        (rewritten(ABOUT, prompts=BOTH, default_prompt_name="query"), "not the tuned model"),
        (rewritten(POOLING, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False), "not the tuned model"),
        (rewritten("sentence_bert_config.json", max_seq_length=7), "not the tuned model"),
        (without_normalisation, "not the tuned model"),
        (with_the_bases_weights, "model.safetensors differs from the merged model"),
    ],
)
def test_an_encoder_that_makes_other_vectors_is_refused(encoder, tmp_path, monkeypatch, spoil, told):
    """By its vectors alone, were its settings not compared."""
    monkeypatch.setattr("ftengine_builtins.exporters.sentence_transformers.require_settings", lambda *_: None)

    class Spoilt(SentenceTransformersExporter):
        def export(self, source, folder):
            made = super().export(source, folder)
            spoil(folder, source.base)
            return made

    with raises(ExportDiffers, told):
        export_run(encoder, Spoilt(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_reranker_that_reads_less_is_refused_by_name(still_reranker, tmp_path):
    rows = [listed(2, seed=i) for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = tuned(still_reranker, tmp_path / "rows.jsonl", "reranking", tmp_path / "run", max_steps=1)

    class Cut(SentenceTransformersExporter):
        def export(self, source, folder):
            made = super().export(source, folder)
            rewritten("tokenizer_config.json", model_max_length=16)(folder, source.base)
            return made

    with raises(ExportDiffers, "model_max_length is 16, measured 128"):
        export_run(run, Cut(), tmp_path / "out", rows=2)
