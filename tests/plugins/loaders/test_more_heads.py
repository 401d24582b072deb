"""Heads beyond causal-lm and sequence-classification, as the transformers loader serves them."""

import pytest
import torch

from ftengine.api import Labels, LoadRequest
from ftengine_builtins.loaders.transformers import TransformersLoader

TAGS = Labels("single", ("O", "B-X", "I-X"))


def load(folder, head="token-classification", labels=TAGS, **options):
    torch.manual_seed(0)
    return TransformersLoader().load(LoadRequest(str(folder), head, labels, **options))


@pytest.mark.parametrize("folder", ["bert_folder", "gpt2_folder", "llama_folder"])
def test_a_model_without_a_tagging_head_gets_a_fresh_one(folder, request):
    folder = request.getfixturevalue(folder)
    loaded, skeleton = load(folder), load(folder, skeleton=True)
    assert len(loaded.new_modules) == 1
    assert skeleton.new_modules == loaded.new_modules
    head = loaded.module.get_submodule(loaded.new_modules[0])
    assert head.weight.shape[0] == 3
    assert loaded.module.config.id2label == {0: "O", 1: "B-X", 2: "I-X"}


def test_tags_in_another_order_get_their_own_outputs(bert_folder, tmp_path):
    first = load(bert_folder)
    first.module.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    again = load(tmp_path, labels=Labels("single", ("B-X", "I-X", "O")))
    assert again.new_modules == ()
    inputs = first.processor("the quick brown fox", return_tensors="pt")
    with torch.no_grad():
        a, b = (x.module.eval()(**inputs).logits for x in (first, again))
    assert torch.equal(a[..., [1, 2, 0]], b)


def test_a_model_that_classifies_texts_gets_a_fresh_head_for_words(bert_folder, tmp_path):
    first = load(bert_folder, "sequence-classification", Labels("single", ("a", "b", "c")))
    first.module.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    assert load(tmp_path).new_modules == ("classifier",)


def test_of_a_model_with_both_the_image_processor_is_taken_on_request(tmp_path):
    from tiny import byte_level_tokenizer
    from transformers import CLIPConfig, CLIPForImageClassification, CLIPImageProcessorPil

    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(text_config=text, vision_config={**text, "image_size": 16, "patch_size": 8}, projection_dim=8)
    CLIPForImageClassification(config).save_pretrained(tmp_path)
    byte_level_tokenizer(pad_token=None).save_pretrained(tmp_path)
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(tmp_path)
    chosen = {
        name: TransformersLoader(TransformersLoader.Config(processor=name)).load_processor(str(tmp_path))
        for name in ("auto", "tokenizer", "image")
    }
    assert hasattr(chosen["auto"], "get_vocab")
    assert hasattr(chosen["tokenizer"], "get_vocab")
    assert not hasattr(chosen["image"], "get_vocab")
    loader = TransformersLoader(TransformersLoader.Config(processor="image"))
    loaded = loader.load(LoadRequest(str(tmp_path), "image-classification", TAGS))
    assert loaded.new_modules == ("classifier",)


def test_image_processors_are_pillow_s_whatever_else_is_installed(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **settings)).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    assert type(TransformersLoader().load_processor(str(tmp_path))) is ViTImageProcessorPil


def test_a_folder_of_timm_is_sent_to_its_own_loader(tmp_path):
    from ftengine.errors import SourceError

    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
    with pytest.raises(SourceError, match=r"is a model of timm.*timm://resnet18 with model\.loader"):
        TransformersLoader().check(str(tmp_path))
