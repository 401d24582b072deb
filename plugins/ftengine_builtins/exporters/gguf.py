"""llama.cpp's GGUF: a merged model, or a LoRA file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ftengine.api import Config, Exported, Exporter, ExportSource, Runtime
from ftengine.equivalence import distance
from ftengine.errors import ExportDiffers, NoRuntime, NotExportable, json_of_file
from ftengine.generation import measured_settings
from ftengine.model import read_tensors, save_model
from ftengine.text import number
from ftengine_builtins.exporters import gguf_experts, gguf_tokenizer
from ftengine_builtins.exporters.llama_cpp import served
from ftengine_builtins.exporters.peft import folded_pairs, read_lora_config, source_of_pairs
from ftengine_builtins.exporters.settings import require_settings
from ftengine_builtins.loaders.gguf import read_gguf

FILE = "model.gguf"
LORA_FILE = "lora.gguf"

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    **gguf_experts.ARCHITECTURES,
}
"""Classes of transformers, with llama.cpp's names of their architectures. Tests run each in llama.cpp."""

NOISE = {"F32": 5e-3, "F16": 1e-2, "BF16": 5e-2, "Q8_0": 1e-1}
"""Allowed mean difference of a token's log-probability by dtype: llama.cpp keeps keys and values in half precision, and
rounds the inputs of each layer to the dtype of its weights. docs/serving.md has measurements."""

SAMPLING = "general.sampling."
"""Prefix of the keys of llama.cpp's default sampling settings."""

ROUNDED_AGAIN = 1.1
"""A tensor's error may be at most this many times that of rounding; for Q8_0 made from Q5 it is 8 times."""
EXACT = float(np.finfo(np.float32).eps)
"""Allowed relative error of a tensor that is stored without rounding."""


class GgufConfig(Config):
    """Options of exporter gguf."""

    dtype: Literal["F32", "F16", "BF16", "Q8_0"] = Field("F16", description="type of matrices; vectors stay float32")
    lora: bool = Field(False, description="write the LoRA alone, for llama.cpp's --lora, in place of a merged model")


class GgufExporter(Exporter):
    """A GGUF file for llama.cpp and programs that use it: the merged model, or only its LoRA."""

    name = "gguf"
    Config = GgufConfig

    def check(self, source: ExportSource) -> None:
        """Refuse architectures, settings and tokenizers that llama.cpp is not known to support."""
        check_architecture(source)
        if self.config.lora:
            read_lora_config(source.trained)
            source_of_pairs(source.trained)
        else:
            gguf_tokenizer.check(source)
            source.check_merge()

    def export(self, source: ExportSource, folder: Path) -> Exported:
        if self.config.lora:
            return write_lora(source, folder / LORA_FILE)
        return write_model(source, folder / FILE, self.config.dtype)

    def check_artifact(self, folder: Path, source: ExportSource) -> None:
        """Refuse tensors coarser than their dtype, and sampling settings other than the measured ones."""
        if not self.config.lora:
            require_precision(source, folder / FILE, self.config.dtype)
            require_sampling(source, folder / FILE)

    @contextmanager
    def open(self, folder: Path, source: ExportSource) -> Iterator[Runtime]:
        """Serve the file with llama.cpp; a LoRA is served on its base, which is written to a temporary folder."""
        if not self.config.lora:
            with served(folder / FILE, source) as runtime:
                yield runtime
            return
        try:
            gguf_tokenizer.check(source)
        except NotExportable as error:
            raise NoRuntime(f"its base, needed to run it, cannot be written as GGUF: {error}") from None
        with TemporaryDirectory() as place:
            loaded = source.load_base()
            save_model(loaded.module.float(), loaded.processor, Path(place) / "base")
            on = replace(source, merged=lambda dtype: Path(place) / "base")
            write_model(on, Path(place) / FILE, "F32")
            with served(Path(place) / FILE, source, folder / LORA_FILE) as runtime:
                yield runtime


def check_architecture(source: ExportSource) -> None:
    """Refuse a model that is not known to compute the same in llama.cpp (NotExportable)."""
    name, config = type(source.module).__name__, getattr(source.module, "config", None)
    if name not in ARCHITECTURES:
        raise NotExportable(
            f"{name} cannot be exported as GGUF. Supported are {', '.join(ARCHITECTURES)}; for others, export to "
            "transformers and convert that with llama.cpp's convert_hf_to_gguf.py."
        )
    rope = getattr(config, "rope_parameters", None) or {}
    faults = {
        f"rope_type {rope.get('rope_type')!r}": rope.get("rope_type", "default") != "default",
        f"hidden_act {config.hidden_act!r}": config.hidden_act != "silu",
        "a sliding window": getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True),
        **gguf_experts.faults(name, config),
    }
    if fault := next((text for text, there in faults.items() if there), None):
        raise NotExportable(
            f"{name} with {fault} cannot be exported as GGUF. Export to transformers and convert that with llama.cpp's "
            "convert_hf_to_gguf.py."
        )


def write_model(source: ExportSource, file: Path, dtype: str) -> Exported:
    """Write the merged model; the facts count its tensors by dtype."""
    import gguf

    merged = source.merged("float32")
    writer = _writer(source, file)
    writer.add_file_type(int(getattr(gguf.LlamaFileType, f"{'ALL' if dtype == 'F32' else 'MOSTLY'}_{dtype}")))
    gguf_tokenizer.write(writer, source)
    for name, value in sampling(source).items():
        getattr(writer, f"add_sampling_{name}")(value)
    counts: dict[str, int] = {}
    for name, tensor in sorted(_tensors(merged).items()):
        stored, kind = _stored(name, rearranged(source, name, tensor), dtype)
        writer.add_tensor(gguf_name(source, name), stored, raw_dtype=kind)
        counts[kind.name] = counts.get(kind.name, 0) + 1
    _finish(writer)
    return Exported(NOISE[dtype], {"file": file.name, "tensors": counts}, f"llama-server --model {file.name}", "gguf")


def sampling(source: ExportSource) -> dict[str, float | int]:
    """Return the measured generation settings under llama.cpp's names; temperature 0 is greedy decoding."""
    own = json_of_file(file) if (file := source.merged("float32") / "generation_config.json").is_file() else {}
    settings = measured_settings(own, source.generation)
    penalty = float(settings.get("repetition_penalty") or 1.0)
    return {
        "temp": float(settings.get("temperature", 0.0)),
        "top_p": float(settings.get("top_p", 1.0)),
        "top_k": 0,
        "min_p": 0.0,
        "penalty_repeat": penalty,
        "penalty_last_n": 0 if penalty == 1 else -1,
    }


def require_sampling(source: ExportSource, file: Path) -> None:
    """Refuse a file with sampling settings other than the measured ones (ExportDiffers)."""
    fields = read_gguf(file).fields
    stored = {key.removeprefix(SAMPLING): field.contents() for key, field in fields.items() if key.startswith(SAMPLING)}
    measured = {key: float(np.float32(value)) for key, value in sampling(source).items()}
    require_settings(file.name, {key: float(value) for key, value in stored.items()}, measured)


def require_precision(source: ExportSource, file: Path, dtype: str) -> None:
    """Refuse a file with a tensor whose error exceeds the rounding of its dtype (ExportDiffers)."""
    import gguf

    written = {entry.name: entry for entry in read_gguf(file).tensors}
    for name, tensor in _tensors(source.merged("float32")).items():
        exact, entry = rearranged(source, name, tensor), written.get(gguf_name(source, name))
        stored, kind = _stored(name, exact, dtype)
        own = np.empty(0) if entry is None else gguf.dequantize(entry.data, entry.tensor_type)
        error, allowed = (distance(x.ravel(), exact.ravel()) for x in (own, gguf.dequantize(stored, kind)))
        if not (np.isfinite(allowed) and error <= ROUNDED_AGAIN * allowed + EXACT):
            raise ExportDiffers(
                f"{name!r} in {file.name} has a relative error of {number(error)}, but rounding to "
                f"{kind.name} explains {number(allowed)}: the tensor is coarser than its dtype, or a different one. "
                "Nothing was written."
            )


def write_lora(source: ExportSource, file: Path) -> Exported:
    """Write the adapter with alpha = rank, as llama.cpp multiplies it by alpha / rank."""
    import gguf

    pairs, rank = folded_pairs(source.trained)
    writer = gguf.GGUFWriter(file, ARCHITECTURES[type(source.module).__name__])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for path, (a, b) in pairs.items():
        name = f"{path.removeprefix('base_model.model.')}.weight"
        theirs = gguf_name(source, name)
        writer.add_tensor(f"{theirs}.lora_a", a.numpy())
        writer.add_tensor(f"{theirs}.lora_b", np.ascontiguousarray(rearranged(source, name, b.numpy())))
    _finish(writer)
    facts = {"file": file.name, "rank": rank, "layers": len(pairs)}
    return Exported(NOISE["F32"], facts, f"llama-server --model BASE.gguf --lora {file.name}", "gguf")


def gguf_name(source: ExportSource, name: str) -> str:
    """Return llama.cpp's name of a tensor (NotExportable: there is none)."""
    names = _names(ARCHITECTURES[type(source.module).__name__], source.module.config.num_hidden_layers)
    named = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if named is None:
        raise NotExportable(f"llama.cpp has no tensor for {name!r}. Export to transformers.")
    return named


@cache
def _names(architecture: str, layers: int) -> Any:
    import gguf

    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return gguf.get_tensor_name_map(kind, layers)


def rearranged(source: ExportSource, name: str, tensor: np.ndarray) -> np.ndarray:
    """Return Llama's query and key rows in llama.cpp's order, which rotates neighbours; other tensors unchanged."""
    config = source.module.config
    if ARCHITECTURES[type(source.module).__name__] != "llama" or not (".q_proj." in name or ".k_proj." in name):
        return tensor
    heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
    shape = tensor.shape
    return tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _writer(source: ExportSource, file: Path) -> Any:
    import gguf

    config = source.module.config
    writer = gguf.GGUFWriter(file, ARCHITECTURES[type(source.module).__name__])
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(Path(source.base).stem)
    writer.add_context_length(source.max_length or config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float((getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    gguf_experts.add_numbers(writer, config)
    return writer


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a transformers folder in float32, one file or several, with experts in one tensor."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"} if not index.is_file() else set(json.loads(index.read_text())["weight_map"].values())
    tensors = {name: x.float().numpy() for file in sorted(names) for name, x in read_tensors(folder / file).items()}
    return gguf_experts.stacked(tensors)


def _stored(name: str, tensor: np.ndarray, dtype: str) -> tuple[np.ndarray, Any]:
    """Return a tensor as stored, and its type: vectors and routers are F32, rows that Q8_0 cannot divide are F16."""
    import gguf

    kind = gguf.GGMLQuantizationType[dtype]
    if tensor.ndim < 2 or gguf_experts.ROUTER.search(name):
        kind = gguf.GGMLQuantizationType.F32
    elif tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = gguf.GGMLQuantizationType.F16
    return gguf.quantize(np.ascontiguousarray(tensor, dtype=np.float32), kind), kind


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
