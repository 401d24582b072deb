"""The files with which sentence-transformers opens a transformers folder as an encoder.

The keys are those of versions before 5.4, which later versions also read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

MODES = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
OTHERS = ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")


def write_activation(directory: Path, activation: str = SIGMOID) -> None:
    """Set CrossEncoder to return scores from 0 to 1, or raw scores, whatever the base's config.json says."""
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("sbert_ce_default_activation_function", None)
    own = config.get("sentence_transformers")
    config["sentence_transformers"] = {**(own if isinstance(own, dict) else {}), "activation_fn": activation}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def drop_chat_template(directory: Path) -> None:
    """Remove the chat template from a folder: CrossEncoder would render a pair of texts with it."""
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    file = directory / "tokenizer_config.json"
    if file.is_file():
        settings = json.loads(file.read_text(encoding="utf-8"))
        if settings.pop("chat_template", None) is not None:
            file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_modules(
    directory: Path,
    dimension: int,
    pooling: str,
    *,
    normalize: bool,
    prompts: Mapping[str, str],
    default: str,
    max_length: int,
) -> None:
    """Write modules.json and its modules' configuration; transformers' own files exist already.

    Args:
        dimension: numbers of a vector.
        pooling: "mean", "cls" or "last".
        normalize: whether vectors are made to have length 1.
        prompts: by name, "query" and "document".
        default: name of the prompt for texts of unknown kind; "": none.
        max_length: longest text in tokens.
    """
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    modes = {f"pooling_mode_{name}": mode == pooling for mode, name in MODES.items()}
    modes |= {f"pooling_mode_{name}": False for name in OTHERS}
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": dict(prompts),
            "default_prompt_name": default if prompts.get(default) else None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {"word_embedding_dimension": dimension, **modes, "include_prompt": True},
    }
    for path, _ in kinds[1:]:
        (directory / path).mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
