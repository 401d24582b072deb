"""Models in llama.cpp's GGUF files, dequantised into a plain transformers model.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import transformers

from ftengine.api import LoadedModel, LoadRequest, ModelLoader, Provenance
from ftengine.errors import SourceError
from ftengine_builtins.loaders.heads import auto_class
from ftengine_builtins.loaders.pretrained import (
    build_skeleton,
    load_pretrained,
    pad_with_eos,
    refuse_adapter,
    require_possible,
)
from ftengine_builtins.loaders.quiet import cause, reading

ADDRESSES = ("repo_url", "url", "source.repo_url", "source.url")
"""Keys with which a file may state its own address or that of its source."""
ON_HUB = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?(?:$|tree/)")
COUNTED = re.compile(r"\.(block|expert)_count$")
VOCABULARY = "tokenizer.ggml."
UNPACKED = 1 << 17
"""Bytes of quantised weights that are dequantised at once. SmolLM2-135M takes 0.2 s; with 16 rows at once, 0.6 s."""


class GgufLoader(ModelLoader):
    """Load a GGUF file. Its weights are dequantised, and the tuned model is saved as an ordinary one."""

    name = "gguf"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._configs: dict[Path, Any] = {}
        self._tokenizers: dict[Path, Any] = {}
        self._parsed: dict[Path, GgufFile] = {}

    def accepts(self, source: str) -> bool:
        """Accept an existing file whose name ends in .gguf."""
        try:
            return source.lower().endswith(".gguf") and Path(source).is_file()
        except (OSError, ValueError):  # not a path: too long, or with a null byte
            return False

    def provenance(self, source: str) -> Provenance:
        """Return the licence that the file states, and the name on the hub of its source."""
        file = read_gguf(Path(source))
        stated = {key: file.value(f"general.{key}") for key in ("license", "license.name", *ADDRESSES)}
        text = {key: value for key, value in stated.items() if isinstance(value, str)}
        address = next(filter(None, (ON_HUB.match(text.get(key, "")) for key in ADDRESSES)), None)
        own = text.get("license", "")
        license = text.get("license.name", own) if own in ("", "other") else own
        return Provenance(address[1] if address else "", license)

    def check_source(self, source: str) -> None:
        """Read the header, to refuse damaged, truncated and split files before loading."""
        path = Path(source)
        if not path.is_file():
            raise SourceError(f"no file {source!r}. A GGUF source is the path of one .gguf file.")
        refuse_adapter(path.parent, source)
        file = read_gguf(path)
        parts = file.value("split.count") or 0
        if parts not in (0, 1):
            cure = "Join them first: llama-gguf-split --merge FIRST_PART OUT.gguf."
            raise SourceError(f"{source!r} is one of {parts} parts. {cure}")
        if not file.tensors or not file.value("general.architecture"):
            raise SourceError(
                f"{source!r} holds no model: {len(file.tensors)} tensors and no usable metadata. Choose another file."
            )
        require_possible({key: file.value(key) for key in file.fields if COUNTED.search(key)}, source)
        self._parsed = {path.absolute(): file}

    def check_head(self, source: str, head: str) -> None:
        """Check that transformers has this head for the architecture in the file's metadata."""
        auto_class(head, self._config(source), source)

    def load_processor(self, source: str) -> Any:
        """Rebuild the tokenizer, chat template included, from the file's metadata."""
        path = Path(source).absolute()
        if path not in self._tokenizers:
            with self._reading(source, path) as where:
                tokenizer = transformers.AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
                end = self._parsed[path].value("tokenizer.ggml.eos_token_id")
                if isinstance(end, int) and tokenizer.eos_token_id != end and 0 <= end < len(tokenizer):
                    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)  # older versions set another token
                self._tokenizers[path] = pad_with_eos(tokenizer)
        return self._tokenizers[path]

    def load(self, request: LoadRequest) -> LoadedModel:
        config, tokenizer = self._config(request.source), self.load_processor(request.source)
        path = Path(request.source).absolute()
        file = self._parsed.pop(path, None) or read_gguf(path)
        file.fields = {key: value for key, value in file.fields.items() if not key.startswith(VOCABULARY)}  # known
        with parsed_once(file):
            # Dequantised weights, so that the model can be saved and loaded as any other. Versions of transformers
            # without GgufConfig always dequantise.
            packing = getattr(transformers, "GgufConfig", None)
            options = {} if packing is None else {"quantization_config": packing(dequantize=True)}
            return load_pretrained(request, path.parent, config, tokenizer, gguf_file=str(path), **options)

    def load_skeleton(self, request: LoadRequest) -> LoadedModel:
        config = self._config(request.source)
        tokenizer = self.load_processor(request.source) if request.processor else None
        path = Path(request.source).absolute()
        file = self._parsed.get(path) or read_gguf(path)
        return build_skeleton(request, config, tokenizer, held=sum(int(tensor.n_elements) for tensor in file.tensors))

    def _config(self, source: str) -> Any:
        path = Path(source).absolute()  # do not resolve links: their targets may lack the suffix
        if path not in self._configs:
            with self._reading(source, path) as where:
                self._configs[path] = transformers.AutoConfig.from_pretrained(**where, trust_remote_code=False)
        return self._configs[path]

    @contextmanager
    def _reading(self, source: str, path: Path) -> Iterator[dict[str, Any]]:
        """Let transformers read the file's metadata, which is parsed once; yield its arguments."""
        if path not in self._parsed:
            self.check_source(source)
        with reading(source), parsed_once(self._parsed[path]):
            # Pass the full path: transformers prefers a file with the bare name in the working directory.
            yield {"pretrained_model_name_or_path": path.parent, "gguf_file": str(path)}


class GgufFile(gguf.GGUFReader):
    """A faster GGUFReader that raises at the end of a truncated file, where the package returns fewer items.

    The package slices the file for each entry of the vocabulary. That is three times faster on a plain array than on a
    memmap, and ten times faster in one loop than with one call for each entry.
    """

    @property
    def data(self) -> np.ndarray:
        return self._plain

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._plain = np.asarray(mapped)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self._plain):
            raise EOFError(f"it has {len(self._plain):,} bytes, but its header requires at least {end:,}")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        """Return the same as the package: an array for each item of a list, for texts their length before the bytes."""
        kind, start = gguf.GGUFValueType, int(orig_offs)
        if raw_type != kind.ARRAY or self.byte_order != "I":  # not the machine's own
            return super()._get_field_parts(orig_offs, raw_type)
        parts = [self._get(start, np.uint32), self._get(start + 4, np.uint64)]
        item, count, at = kind(parts[0][0]), int(parts[1][0]), start + 12
        if number := self.gguf_scalar_to_np.get(item):
            values = self._get(at, number, count)
            parts += [values[i : i + 1] for i in range(count)]
            return 12 + values.nbytes, parts, list(range(2, len(parts))), [kind.ARRAY, *[item] * bool(count)]
        if item != kind.STRING:
            return super()._get_field_parts(orig_offs, raw_type)
        length_of, texts = struct.Struct("=Q").unpack_from, []
        for _ in range(count):
            if at + 8 > len(self._plain) or at + 8 + (length := length_of(self._plain, at)[0]) > len(self._plain):
                self._get(at, np.uint8, self._get(at, np.uint64)[0] + 8)  # raises
            texts.append(self._plain[at + 8 : at + 8 + length])
            at += 8 + length
        lengths = np.array([len(text) for text in texts], dtype=np.uint64)
        parts += [part for i, text in enumerate(texts) for part in (lengths[i : i + 1], text)]
        return at - start, parts, list(range(3, len(parts), 2)), [kind.ARRAY, *[item] * bool(count)]

    def value(self, key: str) -> Any:
        """Return a number or text of the metadata; None if the key is missing (SourceError: text that is not UTF-8)."""
        field = self.get_field(key)
        try:
            return None if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise SourceError(f"a GGUF file has invalid text under {key!r}: {error}. Download it again.") from None


def read_gguf(path: Path) -> GgufFile:
    """Read metadata and tensor table (SourceError: not GGUF, damaged or truncated); 0.1 s for 50,000 tokens."""
    try:
        return GgufFile(path)
    except EOFError as error:
        raise SourceError(f"{str(path)!r} is truncated or damaged: {error}. Download it again.") from None
    # Lengths and offsets of a damaged file are arbitrary, and the package may raise anything.
    except Exception as error:
        raise SourceError(f"{str(path)!r} cannot be read as GGUF: {cause(error)} Download it again.") from None


@contextmanager
def parsed_once(file: GgufFile) -> Iterator[None]:
    """Let transformers use a parsed file, cache its name map, decode and dequantise quickly, and show no bar.

    transformers parses the file again for config, tokenizer and weights, and builds the name map for every submodule.
    Both are pure functions of the file, so caching saves only time: 20 s become 5 s for a model of 135M parameters in
    30 layers.
    """
    from transformers import modeling_gguf_pytorch_utils  # half a second of imports, which lists do not need

    names = functools.lru_cache(maxsize=1)(gguf.get_tensor_name_map)
    parse = modeling_gguf_pytorch_utils._gguf_parse_value

    def value_of(part: np.ndarray, types: Any) -> Any:  # transformers copies a text byte by byte
        return bytes(part).decode() if types[-1:] == [gguf.GGUFValueType.STRING] else parse(part, types)

    with (
        ExitStack() as newer,
        patch.object(gguf, "GGUFReader", lambda *_, **__: file),
        patch.object(gguf, "dequantize", unpack),
        patch.object(gguf, "get_tensor_name_map", names),
        patch.object(modeling_gguf_pytorch_utils, "_gguf_parse_value", value_of),
        patch.object(modeling_gguf_pytorch_utils, "tqdm", lambda items, **_: items),
        # Under Python 3.10, some versions find the package and not its version (fixed in 5.20).
        patch.object(modeling_gguf_pytorch_utils, "is_gguf_available", lambda: True, create=True),
    ):
        with suppress(ImportError):  # newer versions have their own reader of metadata, on a memmap
            reader = import_module("transformers.integrations.gguf.reader")
            newer.enter_context(patch.object(reader, "_mapped", lambda _: file.data))
        yield


def unpack(packed: np.ndarray, kind: Any) -> np.ndarray:
    """Return quantised weights (…, bytes) of a kind as (…, N) float32, the same as the package.

    The package dequantises 16 rows at a time. Rows consist of whole blocks, so several are joined into a longer one.
    """
    (*shape, width), count = packed.shape, packed.size // max(1, packed.shape[-1])
    most = max(1, UNPACKED // (16 * max(1, packed.itemsize * width)))
    together = math.gcd(count, 1 << (most.bit_length() - 1))
    return gguf.quants.dequantize(packed.reshape(count // together, together * width), kind).reshape(*shape, -1)
