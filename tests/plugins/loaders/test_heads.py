"""Classification heads: which modules begin afresh, and how labels meet a head that is there already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from expected import raises
from tiny import word_piece_tokenizer
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaForMaskedLM

from ftengine.api import Labels, LoadedModel, LoadRequest
from ftengine.errors import SourceError
from ftengine_builtins.loaders.transformers import TransformersLoader

THREE = Labels("single", ("sport", "tech", "trade"))
TAGS, TAGGING = Labels("single", ("O", "B-X", "I-X")), "token-classification"
TOPICS = Labels("single", ("business", "entertainment", "politics", "sport", "tech"))


def load(
    folder: Path, labels: Labels | None, head: str = "sequence-classification", skeleton: bool = False
) -> LoadedModel:
    build = TransformersLoader().load_skeleton if skeleton else TransformersLoader().load
    return build(LoadRequest(str(folder), head, labels))


def save(loaded: LoadedModel, folder: Path) -> Path:
    loaded.module.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(bert_folder, tmp_path_factory) -> tuple[LoadedModel, Path]:
    """A BERT classifier of three labels and the folder it was saved to."""
    loaded = load(bert_folder, THREE)
    torch.nn.init.normal_(loaded.module.classifier.bias)
    return loaded, save(loaded, tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    """A RoBERTa classifier of three labels: its head has two layers."""
    folder = tmp_path_factory.mktemp("models") / "roberta"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = RobertaConfig(vocab_size=400, max_position_embeddings=66, pad_token_id=0, **sizes)
    RobertaForMaskedLM(config).save_pretrained(folder / "base")
    word_piece_tokenizer().save_pretrained(folder / "base")
    return save(load(folder / "base", THREE), folder / "classifier")


@pytest.mark.parametrize("skeleton", [False, True])
def test_fresh_classifier_of_minilm_is_found(minilm_folder, skeleton) -> None:
    loaded = load(minilm_folder, TOPICS, skeleton=skeleton)
    assert loaded.new_modules == ("classifier",)  # its pooler came with the checkpoint
    assert loaded.module.classifier.out_features == 5
    assert loaded.max_length == 512


@pytest.mark.parametrize("skeleton", [False, True])
@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("bert_folder", "sequence-classification", ("classifier",)),
        ("bert_folder", "token-classification", ("classifier",)),
        ("gpt2_folder", "sequence-classification", ("score",)),
        ("llama_folder", "sequence-classification", ("score",)),
    ],
)
def test_fresh_heads_are_found(request, name, head, expected, skeleton) -> None:
    assert load(request.getfixturevalue(name), THREE, head, skeleton).new_modules == expected


@pytest.mark.parametrize("skeleton", [False, True])
def test_fresh_pooler_counts_as_new(bert_folder, tmp_path, skeleton) -> None:
    BertForMaskedLM(BertConfig.from_pretrained(bert_folder)).save_pretrained(tmp_path)  # saved without a pooler
    word_piece_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path, THREE, skeleton=skeleton).new_modules == ("bert.pooler", "classifier")


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_what_the_weights_bring_is_not_new_whatever_class_the_config_names(bert_folder, tmp_path, form) -> None:
    folder = shutil.copytree(bert_folder, tmp_path / "bert")  # its weights have a pooler
    if form != "whole":
        (folder / "model.safetensors").unlink()
        BertModel.from_pretrained(bert_folder).save_pretrained(folder, max_shard_size="50KB")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder, THREE, skeleton=True).new_modules == load(folder, THREE).new_modules == ("classifier",)


@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_labels_are_written_into_the_config(bert_folder, kind) -> None:
    config = load(bert_folder, Labels(kind, THREE.names)).module.config
    problem = {"single": "single_label_classification", "multi": "multi_label_classification"}
    assert config.problem_type == problem.get(kind, "regression")
    assert config.num_labels == 3
    assert config.id2label == {0: "sport", 1: "tech", 2: "trade"}
    assert config.label2id == {"sport": 0, "tech": 1, "trade": 2}


@pytest.mark.parametrize("skeleton", [False, True])
def test_head_with_the_same_labels_is_kept(classifier, skeleton) -> None:
    original, folder = classifier
    loaded = load(folder, THREE, skeleton=skeleton)
    assert loaded.new_modules == ()
    if not skeleton:
        assert torch.equal(loaded.module.classifier.weight, original.module.classifier.weight)


def test_head_with_the_same_labels_in_another_order_answers_in_that_order(classifier) -> None:
    original, folder = classifier
    loaded = load(folder, Labels("single", ("trade", "sport", "tech")))
    assert loaded.new_modules == ()
    batch = original.processor("The match ended in a draw", return_tensors="pt")
    with torch.no_grad():
        ours, theirs = loaded.module(**batch).logits[0], original.module.eval()(**batch).logits[0]
    by_name = {name: theirs[i].item() for name, i in original.module.config.label2id.items()}
    # Rows only change places, but a matrix product may add in another order.
    torch.testing.assert_close(ours, torch.tensor([by_name[name] for name in ("trade", "sport", "tech")]))
    assert loaded.module.config.id2label == {0: "trade", 1: "sport", 2: "tech"}


@pytest.mark.parametrize(
    "labels",
    [
        Labels("single", ("cat", "dog", "fox")),
        Labels("multi", THREE.names),
        Labels("regression", THREE.names),
        Labels("single", ("sport", "tech")),
    ],
)
def test_head_for_another_question_begins_afresh(classifier, labels) -> None:
    original, folder = classifier
    loaded = load(folder, labels)
    assert loaded.new_modules == ("classifier",)
    assert not torch.equal(loaded.module.classifier.weight[:2], original.module.classifier.weight[:2])


def test_fresh_head_depends_on_the_seed_alone(bert_folder, classifier) -> None:
    for folder, labels in ((bert_folder, THREE), (classifier[1], Labels("single", ("cat", "dog", "fox")))):
        weights = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            weights.append(load(folder, labels).module.classifier.weight)
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])


def test_tags_in_another_order_get_their_own_outputs(bert_folder, tmp_path):
    first = load(bert_folder, TAGS, TAGGING)
    save(first, tmp_path)
    again = load(tmp_path, Labels("single", ("B-X", "I-X", "O")), TAGGING)
    assert again.new_modules == ()
    inputs = first.processor("the quick brown fox", return_tensors="pt")
    with torch.no_grad():
        a, b = (x.module.eval()(**inputs).logits for x in (first, again))
    assert torch.equal(a[..., [1, 2, 0]], b)


def test_a_folder_of_timm_is_sent_to_its_own_loader(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
    with raises(SourceError, "timm://resnet18"):
        TransformersLoader().check_source(str(tmp_path))
