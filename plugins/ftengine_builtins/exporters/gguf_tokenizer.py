"""The tokenizer of a GGUF file: copied from a GGUF base, else written if llama.cpp is known to support it."""

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
"""Pre-tokenizers of byte-level BPE, by llama.cpp's names."""

COPIED = "tokenizer."
OURS = ("tokenizer.chat_template",)
"""Keys that are written from the run, not copied from the base."""


def check(source: ExportSource) -> None:
    """Refuse a tokenizer that llama.cpp is not known to support (NotExportable)."""
    if (file := base_file(source)) is not None:
        size = len(read_gguf(file).get_field("tokenizer.ggml.tokens").data)
        if size != source.module.config.vocab_size:
            raise NotExportable(
                f"the model has {source.module.config.vocab_size:,} tokens, but its base file has {size:,}: the "
                "vocabulary has grown. Export to transformers and convert that with llama.cpp's convert_hf_to_gguf.py."
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
    """Return the base's GGUF file; None if the base has another format."""
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
    """Return llama.cpp's name of the tokenizer's pre-tokenizer (NotExportable: it has none)."""
    content = _content(source)
    model, division = content.get("model") or {}, content.get("pre_tokenizer") or {}
    parts = division.get("pretokenizers") or [division]
    plain = [{key: value for key, value in part.items() if key != "trim_offsets"} for part in parts]
    normal = content.get("normalizer") in (None, {"type": "NFC"})
    pre = next((name for name, steps in PRE if plain == steps), None)
    if model.get("type") != "BPE" or model.get("byte_fallback") or not normal or pre is None:
        raise NotExportable(
            f"the tokenizer of {source.base!r} ({model.get('type', 'without a tokenizer.json')}) cannot be written "
            "as GGUF. Supported is byte-level BPE with the pre-tokenizer of GPT-2, SmolLM, Qwen2 or Llama 3. Export to "
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
    writer.add_token_merges(
        [entry if isinstance(entry, str) else " ".join(entry) for entry in content["model"]["merges"]]
    )
    own = (("bos", processor.bos_token_id), ("eos", processor.eos_token_id), ("pad", processor.pad_token_id))
    for name, token in own:
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    begins = processor.bos_token_id is not None and processor("")["input_ids"][:1] == [processor.bos_token_id]
    writer.add_add_bos_token(begins)
    others = [token for token in reversed(source.stop) if token != processor.eos_token_id]
    if len(source.stop) > 1:  # the format has two more end tokens: of a turn, and of a message such as a tool call
        for add, token in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
            add(token)
