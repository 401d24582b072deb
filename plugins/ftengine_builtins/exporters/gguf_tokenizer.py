"""The tokenizer's part of a GGUF file: copied from a base that is one, else made where llama.cpp is known to agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftengine.api import ExportSource
from ftengine.errors import NotExportable
from ftengine_builtins.loaders.gguf import read_gguf
from ftengine_builtins.loaders.package import SCHEME, resolve

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
NO_REGEX = {**BYTES, "use_regex": False}
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


PRE = (
    ("gpt-2", [BYTES]),
    ("smollm", [{"type": "Digits", "individual_digits": True}, BYTES]),
    ("qwen2", [_split(QWEN), NO_REGEX]),
    ("llama-bpe", [_split(LLAMA3), NO_REGEX]),
)
"""How byte-level tokenizers divide a text before they merge, and what llama.cpp calls it."""

COPIED = "tokenizer."
OURS = ("tokenizer.chat_template",)
"""Keys that are the run's own, whatever the base says."""


def check(source: ExportSource) -> None:
    """Refuse (NotExportable) a tokenizer that llama.cpp is not known to have."""
    if (file := base_file(source)) is not None:
        held = len(read_gguf(file).get_field("tokenizer.ggml.tokens").data)
        if held != source.module.config.vocab_size:
            raise NotExportable(
                f"the model has {source.module.config.vocab_size:,} tokens, and its base file {held:,}: the vocabulary "
                "has grown. Export to transformers and convert that with llama.cpp's convert_hf_to_gguf.py."
            )
    else:
        _pre(source)


def write(writer: Any, source: ExportSource) -> None:
    """Write tokens, merges, special tokens and the chat template."""
    if (file := base_file(source)) is not None:
        _copy(writer, file)
    else:
        _make(writer, source)
    template = getattr(source.processor, "chat_template", None)
    if template:
        writer.add_chat_template(template)


def base_file(source: ExportSource) -> Path | None:
    """Return the GGUF file that is the base; None where it is something else."""
    path = resolve(source.base) if source.base.startswith(SCHEME) else Path(source.base)
    return path if path.suffix.lower() == ".gguf" and path.is_file() else None


def _copy(writer: Any, file: Path) -> None:
    for key, field in read_gguf(file).fields.items():
        if key.startswith(COPIED) and key not in OURS:
            kinds = field.types
            writer.add_key_value(key, field.contents(), kinds[0], *([kinds[-1]] if len(kinds) > 1 else []))


def _content(source: ExportSource) -> dict[str, Any]:
    backend = getattr(source.processor, "backend_tokenizer", None)
    return {} if backend is None else json.loads(backend.to_str())


def _pre(source: ExportSource) -> str:
    """Return what llama.cpp calls the tokenizer's division into words (NotExportable: nothing that is known)."""
    content = _content(source)
    model, division = content.get("model") or {}, content.get("pre_tokenizer") or {}
    parts = division.get("pretokenizers") or [division]
    plain = [{key: one for key, one in part.items() if key != "trim_offsets"} for part in parts]
    normal = content.get("normalizer") in (None, {"type": "NFC"})
    pre = next((name for name, known in PRE if plain == known), None)
    if model.get("type") != "BPE" or model.get("byte_fallback") or not normal or pre is None:
        raise NotExportable(
            f"the tokenizer of {source.base!r} ({model.get('type', 'without a tokenizer.json')}) is not one that is "
            "written as GGUF: byte-level BPE that divides texts as GPT-2, SmolLM, Qwen2 or Llama 3 do. Export to "
            "transformers and convert that with llama.cpp's convert_hf_to_gguf.py."
        )
    return pre


def _make(writer: Any, source: ExportSource) -> None:
    import gguf

    content, processor = _content(source), source.processor
    added = {token["id"]: token for token in content["added_tokens"]}
    words = {index: word for word, index in content["model"]["vocab"].items()}
    words |= {index: token["content"] for index, token in added.items()}
    size = source.module.config.vocab_size
    tokens = [words.get(i, f"[PAD{i}]") for i in range(size)]
    kinds = [gguf.TokenType.NORMAL if i in words else gguf.TokenType.UNUSED for i in range(size)]
    for index, token in added.items():
        kinds[index] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre(source))
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in content["model"]["merges"]])
    own = (("bos", processor.bos_token_id), ("eos", processor.eos_token_id), ("pad", processor.pad_token_id))
    for name, token in own:
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    begins = processor.bos_token_id is not None and processor("")["input_ids"][:1] == [processor.bos_token_id]
    writer.add_add_bos_token(begins)
    others = [one for one in reversed(source.stop) if one != processor.eos_token_id]
    if len(source.stop) > 1:  # a file has room for two more: of a turn, and of a message, as a call of a tool
        for add, token in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
            add(token)
