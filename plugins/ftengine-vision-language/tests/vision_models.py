"""Tiny vision-language models of several architectures, each with its own processor and a chat template."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as t
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WORDS = (
    *("what", "is", "it", "?", "a", "the", "red", "green", "blue", "square", "colour", "one", "two", "and", "first"),
    *("second", "yes", "no", "user", "assistant", "system", "noise", ".", ":", "hello", "there", "now", ","),
)
SPECIAL = (
    *(
        "<pad>",
        "<bos>",
        "<eos>",
        "<unk>",
        "<image>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
    ),
    *(
        "<|image_pad|>",
        "<|video_pad|>",
        "<fake_token_around_image>",
        "<global-img>",
        "<end_of_utterance>",
        "<boi>",
        "<eoi>",
    ),
    *("<image_soft_token>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "\n"),
    *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
)
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}MARK{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": len(WORDS) + len(SPECIAL),
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 6,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def tokenizer(**extra: str) -> Any:
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    fast = t.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        extra_special_tokens=extra,
    )
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL[4:])}, replace_extra_special_tokens=False)
    return fast


def _id(name: str) -> int:
    return SPECIAL.index(name)


def llava() -> tuple[Any, Any, str]:
    config = t.LlavaConfig(
        text_config=t.LlamaConfig(**TEXT),
        vision_config=t.CLIPVisionConfig(**VISION, projection_dim=16),
        image_token_index=_id("<image>"),
        image_token_id=_id("<image>"),
        vision_feature_layer=-1,
    )
    images = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = t.LlavaProcessor(
        images, tokenizer(), patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return t.LlavaForConditionalGeneration(config), processor, "<image>"


def _qwen(kind: str) -> tuple[Any, Any, str]:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    text = {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
    tokens = {
        "image_token_id": _id("<|image_pad|>"),
        "video_token_id": _id("<|video_pad|>"),
        "vision_start_token_id": _id("<|vision_start|>"),
        "vision_end_token_id": _id("<|vision_end|>"),
    }
    sizes = {
        "patch_size": 8,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 256, "longest_edge": 4096},
    }
    own = tokenizer(image_token="<|image_pad|>", video_token="<|video_pad|>")
    if kind == "2.5":
        vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 16}
        vision |= {"patch_size": 8, "spatial_merge_size": 2, "window_size": 32, "fullatt_block_indexes": [1]}
        config: Any = t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
        made = t.Qwen2_5_VLForConditionalGeneration(config)
        kind_of_processor: Any = t.Qwen2_5_VLProcessor
    else:
        vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 16}
        vision |= {
            "patch_size": 8,
            "spatial_merge_size": 2,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        }
        config = t.Qwen3VLConfig(text_config={**text, "head_dim": 8}, vision_config=vision, **tokens)
        made = t.Qwen3VLForConditionalGeneration(config)
        kind_of_processor = t.Qwen3VLProcessor
    processor = kind_of_processor(Qwen2VLImageProcessor(**sizes), own, Qwen2VLVideoProcessor(**sizes))
    return made, processor, "<|vision_start|><|image_pad|><|vision_end|>"


def qwen2_5_vl() -> tuple[Any, Any, str]:
    return _qwen("2.5")


def qwen3_vl() -> tuple[Any, Any, str]:
    return _qwen("3")


def idefics3() -> tuple[Any, Any, str]:
    config = t.Idefics3Config(
        text_config=t.LlamaConfig(**TEXT),
        vision_config={**VISION, "num_channels": 3},
        scale_factor=2,
        image_token_id=_id("<image>"),
        pad_token_id=0,
    )
    images = t.Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return (
        t.Idefics3ForConditionalGeneration(config),
        t.Idefics3Processor(images, tokenizer(), image_seq_len=4),
        "<image>",
    )


def gemma3() -> tuple[Any, Any, str]:
    text = {**TEXT, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
    config = t.Gemma3Config(
        text_config=t.Gemma3TextConfig(**text),
        vision_config=t.SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        mm_tokens_per_image=4,
        boi_token_index=_id("<boi>"),
        eoi_token_index=_id("<eoi>"),
        image_token_index=_id("<image_soft_token>"),
    )
    images = t.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    own = tokenizer(image_token="<image_soft_token>", boi_token="<boi>", eoi_token="<eoi>")
    return t.Gemma3ForConditionalGeneration(config), t.Gemma3Processor(images, own, image_seq_length=4), "<boi>"


def internvl() -> tuple[Any, Any, str]:
    vision = {**VISION, "image_size": [32, 32], "patch_size": [8, 8], "use_mean_pooling": True, "use_qk_norm": False}
    config = t.InternVLConfig(
        vision_config=vision,
        text_config=t.Qwen2Config(**TEXT),
        image_token_id=_id("<IMG_CONTEXT>"),
        downsample_ratio=0.5,
    )
    images = t.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=False)
    own = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    processor = t.InternVLProcessor(
        images, own, t.InternVLVideoProcessor(size={"height": 32, "width": 32}), image_seq_length=4
    )
    return t.InternVLForConditionalGeneration(config), processor, "<IMG_CONTEXT>"


def pixtral() -> tuple[Any, Any, str]:
    config = t.LlavaConfig(
        text_config=t.MistralConfig(**TEXT),
        vision_config=t.PixtralVisionConfig(**{**VISION, "image_size": 64, "head_dim": 8}),
        image_token_index=_id("[IMG]"),
        image_token_id=_id("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    images = t.PixtralImageProcessor(size={"longest_edge": 32}, patch_size={"height": 8, "width": 8})
    processor = t.PixtralProcessor(
        images,
        tokenizer(),
        patch_size=8,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
    )
    return t.LlavaForConditionalGeneration(config), processor, "[IMG]"


ARCHITECTURES = {made.__name__: made for made in (llava, qwen2_5_vl, qwen3_vl, idefics3, gemma3, internvl, pixtral)}


def tiny(name: str) -> tuple[Any, Any]:
    """Return a random model and its processor."""
    torch.manual_seed(0)
    module, processor, mark = ARCHITECTURES[name]()
    for name, parameter in module.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # Gemma 3's begins at zero, so that no picture has an effect
            torch.nn.init.normal_(parameter, std=0.1)
    processor.chat_template = TEMPLATE.replace("MARK", mark)
    module.generation_config.eos_token_id, module.generation_config.pad_token_id = _id("<|im_end|>"), 0
    return module.eval(), processor


def square(colour: str, width: int = 40, height: int = 32) -> Image.Image:
    """Return a picture of one colour with some noise, which processors do not take for another type."""
    base = np.array({"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}[colour])
    noise = np.random.default_rng(width).integers(0, 20, (height, width, 3))
    return Image.fromarray((base + noise).clip(0, 255).astype(np.uint8))
