"""Rows, vectors and files of task embedding."""

import json

import numpy as np
import pytest
import torch
from expected import raises
from safetensors.torch import load_file, save_file

from ftengine.api import LoadRequest
from ftengine.errors import DataError, InputError, RecipeError, SourceError
from ftengine.plugins.registry import Registry
from ftengine.testing import check_task
from ftengine_builtins.loaders.transformers import TransformersLoader
from ftengine_builtins.tasks.embedding import Embedding, EmbeddingConfig
from ftengine_builtins.tasks.embedding_rows import recognise_embedding

PAIRS = [
    {"anchor": "What is the capital of France?", "positive": "The capital of France is Paris."},
    {"anchor": "How do I reset my password?", "positive": "Open the settings, choose the account, follow the link."},
    {"anchor": "How are you?", "positive": "I am fine, thank you."},
]
ROWS = {
    "pairs": PAIRS,
    "triplets": [{**row, "negative": PAIRS[i - 1]["positive"]} for i, row in enumerate(PAIRS)],
    "scored": [
        {"sentence1": row["anchor"], "sentence2": row["positive"], "score": 0.1 + i / 3} for i, row in enumerate(PAIRS)
    ],
    "labelled": [{"text": text, "label": i % 2} for i, row in enumerate(PAIRS) for text in row.values()],
}


def task(**options):
    return Embedding(EmbeddingConfig(**options))


@pytest.fixture(scope="module")
def load(bert_folder):
    def load(labels=None):
        return TransformersLoader().load(LoadRequest(str(bert_folder), "feature-extraction", dtype="float32"))

    return load


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["auto", "triplet", "cosine"])
@pytest.mark.parametrize("rows", ROWS)
def test_it_conforms(rows, loss, load):
    try:
        options = EmbeddingConfig(rows=rows, loss=loss)
    except ValueError:
        return  # which are refused is asked below
    check_task(lambda: Embedding(options), load().processor, ROWS[rows], load)


@pytest.mark.parametrize(
    ("rows", "loss", "allowed"),
    [("pairs", "triplet", "in-batch"), ("pairs", "cosine", "in-batch"), ("scored", "in-batch", "cosent")],
)
def test_losses_say_which_rows_they_take(rows, loss, allowed):
    spec = {"name": "embedding", "rows": rows, "loss": loss}
    with raises(RecipeError, rows, loss, allowed):
        Registry().build("task", spec, "task")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"dimensions": [8, 0]}, ["dimensions", "0"]),
        ({"dimensions": [-1]}, ["dimensions", "-1"]),
        ({"dimensions": [8], "dimension_weights": [-1.0]}, ["dimension_weights"]),
        ({"rows": "labelled", "same": "topic"}, ["same", "topic", "pairs"]),
        ({"rows": "labelled", "symmetric": True}, ["symmetric", "labelled"]),
        ({"rows": "triplets", "loss": "triplet", "temperature": 0.1}, ["temperature", "in-batch"]),
        ({"rows": "scored", "margin": 2.0}, ["margin", "triplet"]),
        ({"rows": "scored", "document_prompt": "passage: "}, ["document_prompt", "passage: "]),
        ({"highest_score": 5.0}, ["highest_score", "scored"]),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, facts):
    with raises(RecipeError, *facts):
        Registry().build("task", {"name": "embedding", **options}, "task")
    Registry().build("task", {"name": "embedding", **EmbeddingConfig(rows="labelled").model_dump()}, "task")


def test_dimensions_that_vectors_do_not_have_are_refused(load):
    size = load().module.config.hidden_size
    task(dimensions=[size]).set_model(load(), None)
    with raises(RecipeError, "task.dimensions", str(size + 1), str(size)):
        task(dimensions=[8, size + 1]).set_model(load(), None)


@pytest.mark.parametrize("folder", ["bert_folder", "llama_folder"])
@pytest.mark.parametrize("pooling", ["auto", "mean", "cls", "last"])
def test_vectors_are_what_hidden_states_are_pooled_to(folder, pooling, request):
    """One by one, without padding, as in a padded batch."""
    of = request.getfixturevalue(folder)
    loaded = TransformersLoader().load(LoadRequest(str(of), "feature-extraction", dtype="float32"))
    own, texts = task(pooling=pooling, normalize=False), [row["positive"] for row in PAIRS]
    found = own.infer(loaded, [{"positive": text} for text in texts])
    for text, one in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = loaded.module(**loaded.processor(text, return_tensors="pt")).last_hidden_state[0]
        mode = {"bert_folder": "mean", "llama_folder": "last"}[folder] if pooling == "auto" else pooling
        wanted = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[mode]
        torch.testing.assert_close(torch.tensor(one["vector"]), wanted, rtol=1e-4, atol=1e-5)


def test_prompts_stand_before_queries_and_documents(load):
    loaded, own = load(), task(query_prompt="query: ", document_prompt="passage: ")
    features = own.encode(PAIRS[0], loaded.processor)
    texts = [
        loaded.processor.decode(features.inputs[name], skip_special_tokens=True)
        for name in ("input_ids", "positive_ids")
    ]
    plain = task().encode(PAIRS[0], loaded.processor)
    assert len(features.inputs["input_ids"]) > len(plain.inputs["input_ids"])
    assert [text.split()[0] for text in texts] == ["query", "passage"]
    (vector,) = own.infer(loaded, [{"anchor": "a fox"}])
    assert vector == task().infer(loaded, [{"anchor": "query: a fox"}])[0]
    assert vector == own.infer(loaded, [{"other": "a fox"}], {"column": "other", "prompt": "query"})[0]
    assert vector != own.infer(loaded, [{"positive": "a fox"}])[0]
    assert own.infer(loaded, [{"text": "a fox"}]) == own.infer(loaded, [{"document": "a fox"}])
    labelled = task(query_prompt="query: ", rows="labelled")
    assert labelled.infer(loaded, [{"text": "a fox"}])[0] == vector
    with raises(InputError, "limit"):
        own.infer(loaded, [{"anchor": "a"}], {"limit": 3})


@pytest.mark.parametrize(
    ("rows", "row", "facts"),
    [
        ("pairs", {"anchor": "a"}, ["`positive`"]),
        ("pairs", {"anchor": "a", "positive": "  "}, ["`positive`", "empty"]),
        ("triplets", {"anchor": "a", "positive": "b", "negative": None}, ["`negative`"]),
        ("scored", {"sentence1": "a", "sentence2": "b", "score": "high"}, ["`score`", "high"]),
        ("labelled", {"text": "a", "label": None}, ["label"]),
    ],
)
def test_rows_that_cannot_be_read_are_refused(rows, row, facts, load):
    with raises(DataError, *facts):
        task(rows=rows).encode(row, load().processor)


def test_scores_beyond_a_cosine_are_refused_where_they_are_compared_with_one(load):
    row = {"sentence1": "a", "sentence2": "b", "score": 4.2}
    with raises(DataError, "4.2", "task.highest_score"):
        task(rows="scored", loss="cosine").encode(row, load().processor)
    fits = task(rows="scored", loss="cosine", highest_score=5).encode(row, load().processor)
    assert fits.inputs["score"] == pytest.approx(0.84)
    assert task(rows="scored").encode(row, load().processor).inputs["score"] == 4.2


@pytest.mark.parametrize(
    ("labels", "facts"),
    [([1, 1, 1], ["label '1'"]), ([1, 2, 3], ["3 labels", "task.rows=pairs"]), ([None], ["no label"])],
)
def test_labels_without_a_pair_are_refused(labels, facts):
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    with raises(DataError, *facts):
        task(rows="labelled").learn_labels({"train": rows})


def test_columns_of_another_kind_are_named():
    with raises(DataError, "positive", "task.rows=labelled"):
        task().check_columns(["text", "label"])
    with raises(DataError, "task.same"):
        task(same="topic").check_columns(["anchor", "positive"])


@pytest.mark.parametrize(
    ("row", "columns", "options"),
    [
        ({"query": "a", "passage": "b"}, {"anchor": "query", "positive": "passage"}, {}),
        ({"anchor": "a", "positive": "b", "neg": "c"}, {"negative": "neg"}, {"rows": "triplets"}),
        ({"sentence1": "a", "sentence2": "b", "similarity": 0.2}, {"score": "similarity"}, {"rows": "scored"}),
        ({"review": "a", "label": "b"}, {"text": "review"}, {"rows": "labelled"}),
        ({"text": "a", "label": ["b", "c"]}, None, None),
        ({"query": "a", "document": "b", "label": 1}, None, None),
        ({"query": ["a"], "document": "b"}, None, None),
    ],
)
def test_columns_that_people_have_are_recognised(row, columns, options):
    found = recognise_embedding(list(row), [row])
    assert (found and found.columns, found and found.options) == (columns, options)


def test_a_pooling_that_the_model_was_made_for_is_taken(bert_folder, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(bert_folder, folder)
    (folder / "1_Pooling").mkdir()
    file = folder / "1_Pooling" / "config.json"
    request = LoadRequest(str(folder), "feature-extraction", dtype="float32")
    for told, wanted in (
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ):
        file.write_text(json.dumps(told))
        loaded = TransformersLoader().load(request)
        assert loaded.module.config.sentence_encoder["pooling"] == wanted
        row = {"anchor": "a red fox"}
        assert task().infer(loaded, [row]) == task(pooling=wanted).infer(loaded, [row])
        assert TransformersLoader().load_skeleton(request).module.config.sentence_encoder["pooling"] == wanted
    file.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with raises(SourceError, "max_tokens"):
        TransformersLoader().load(request)


def test_prompts_and_length_are_those_that_the_model_was_made_for(bert_folder, tmp_path):
    import shutil

    folder = shutil.copytree(bert_folder, tmp_path / "model")
    about = {"prompts": {"query": "query: ", "passage": "passage: ", "s2s": "same: "}, "default_prompt_name": "s2s"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(about))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    loaded = TransformersLoader().load(LoadRequest(str(folder), "feature-extraction", dtype="float32"))

    def read(row, **options):
        one = task(**options)
        one.set_model(loaded, None)
        features = one.encode(row, loaded.processor, max_length=loaded.max_length)
        return [features.inputs[f"{side}_ids" if side else "input_ids"] for side in ("", "positive")]

    pair, scored = {"anchor": "a red fox", "positive": "x " * 40}, {"sentence1": "a", "sentence2": "b", "score": 1.0}
    asked, found = read(pair)
    plain = task(query_prompt="query: ", document_prompt="passage: ", max_length=12)
    expected = plain.encode(pair, loaded.processor, max_length=loaded.max_length)
    assert (asked, found) == (expected.inputs["input_ids"], expected.inputs["positive_ids"])
    assert len(found) == 12
    asked, found = read(pair, query_prompt="", document_prompt="", max_length=20)
    bare = task(max_length=20).encode(pair, loaded.processor, max_length=loaded.max_length)
    assert (asked, found) == (bare.inputs["input_ids"], bare.inputs["positive_ids"])
    same = task(rows="scored", query_prompt="same: ").encode(scored, loaded.processor).inputs["input_ids"]
    assert read(scored, rows="scored")[0] == same


def test_a_module_that_makes_other_vectors_is_refused(bert_folder, tmp_path):
    import shutil

    folder = shutil.copytree(bert_folder, tmp_path / "model")
    request = LoadRequest(str(folder), "feature-extraction", dtype="float32")
    kinds = ["base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling", "models.Dense"]
    for there in (2, 3):
        modules = [{"idx": i, "type": f"sentence_transformers.{kind}"} for i, kind in enumerate(kinds[:there])]
        (folder / "modules.json").write_text(json.dumps(modules))
        if there == 2:
            TransformersLoader().load_skeleton(request)
            (folder / "1_Pooling").mkdir()
            left_out = {"pooling_mode_mean_tokens": True, "include_prompt": False}
            (folder / "1_Pooling" / "config.json").write_text(json.dumps(left_out))
            TransformersLoader().load_skeleton(request)  # without a prompt nothing is left out
            (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "find: "}}))
            with raises(SourceError, "include_prompt"):
                TransformersLoader().load_skeleton(request)
            continue
        with raises(SourceError, "Dense"):
            TransformersLoader().load_skeleton(request)


def test_only_the_pooler_may_begin_afresh(bert_folder, tmp_path):
    """It is read by nobody; any other weight that lacks would be noise in the vectors."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(bert_folder, folder)
    weights = load_file(folder / "model.safetensors")
    request = LoadRequest(str(folder), "feature-extraction", dtype="float32")
    kept = {name: x for name, x in weights.items() if not name.startswith("pooler")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    loaded = TransformersLoader().load(request)
    assert loaded.new_modules == ()
    assert not loaded.module.pooler.dense.weight.any()
    lacking = next(name for name in kept if "attention" in name)
    save_file({k: x for k, x in kept.items() if k != lacking}, folder / "model.safetensors", {"format": "pt"})
    with raises(SourceError, lacking):
        TransformersLoader().load(request)


def test_an_encoder_decoder_is_refused(t5_folder):
    with raises(SourceError, "t5"):
        TransformersLoader().load_skeleton(LoadRequest(str(t5_folder), "feature-extraction"))


def test_files_of_sentence_transformers_have_the_keys_that_all_versions_read(load, tmp_path):
    own = task(query_prompt="query: ", max_length=64)
    own.write_config(load(), tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [one["type"].rpartition(".")[2] for one in modules] == ["Transformer", "Pooling", "Normalize"]
    assert all((tmp_path / one["path"]).is_dir() for one in modules)
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert [key for key, on in pooling.items() if on is True] == ["pooling_mode_mean_tokens", "include_prompt"]
    assert pooling["word_embedding_dimension"] == load().module.config.hidden_size
    about = json.loads((tmp_path / "config_sentence_transformers.json").read_text())
    assert about["prompts"] == {"query": "query: ", "document": ""}
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text())["max_seq_length"] == 64


def test_views_put_texts_back():
    row = {"anchor": "a", "positive": "b", "id": 3}
    assert task().with_inputs(row, ["c", "d"]).items() >= {"anchor": "c", "positive": "d", "id": 3}.items()
    assert task().view({"anchor": "a"}).inputs == []
    assert task(rows="labelled").view({"text": "a", "label": "x"}).label == "x"
    assert np.isscalar(task(rows="scored").view(ROWS["scored"][0]).target)
