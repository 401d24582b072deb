"""Models in llama.cpp's GGUF files, unpacked into a plain transformers model."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import transformers
from transformers import AutoConfig, AutoTokenizer, modeling_gguf_pytorch_utils

from ftengine.api import LoadedModel, LoadRequest, ModelLoader
from ftengine.errors import SourceError
from ftengine_builtins.loaders.gguf_header import read_header
from ftengine_builtins.loaders.pretrained import load_pretrained, pad_with_eos, refuse_adapter
from ftengine_builtins.loaders.quiet import reading


class GgufLoader(ModelLoader):
    """Load a GGUF file; its weights are unpacked, and what is trained saves as an ordinary model."""

    name = "gguf"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._read: dict[Path, tuple[Any, Any]] = {}

    def accepts(self, source: str) -> bool:
        """Accept an existing file whose name ends in .gguf."""
        return source.lower().endswith(".gguf") and Path(source).is_file()

    def check(self, source: str) -> None:
        """Read the header: a damaged, truncated or split file is found before anything is loaded."""
        path = Path(source)
        if not path.is_file():
            raise SourceError(f"no file {source!r}. A GGUF source is the path of one .gguf file.")
        refuse_adapter(path.parent, source)
        header = read_header(path)
        parts = header.metadata.get("split.count", 0)
        if parts not in (0, 1):
            raise SourceError(
                f"{source!r} is one of {parts} parts. Join them first: llama-gguf-split --merge FIRST_PART OUT.gguf."
            )
        if not header.tensors or "general.architecture" not in header.metadata:
            raise SourceError(f"{source!r} holds no model: {header.tensors} tensors and no usable metadata.")

    def load_processor(self, source: str) -> Any:
        """Rebuild the tokenizer, chat template included, from the file's metadata."""
        return self._config_and_tokenizer(source)[1]

    def load(self, request: LoadRequest) -> LoadedModel:
        config, tokenizer = self._config_and_tokenizer(request.source)
        path = Path(request.source).absolute()
        with parsed_once():
            return load_pretrained(request, path.parent, config, tokenizer, gguf_file=str(path), **_unpacked())

    def _config_and_tokenizer(self, source: str) -> tuple[Any, Any]:
        """Read config and tokenizer once: walking the vocabulary takes seconds."""
        path = Path(source).absolute()  # links stay: what they lead to may have no suffix, by which it is known
        if path not in self._read:
            self.check(source)
            # The whole path goes in: transformers prefers a file of that bare name in the working directory.
            where = {"pretrained_model_name_or_path": path.parent, "gguf_file": str(path)}
            with reading(source), parsed_once():
                config = AutoConfig.from_pretrained(**where, trust_remote_code=False)
                tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
            self._read[path] = config, pad_with_eos(tokenizer)
        return self._read[path]


def _unpacked() -> dict[str, Any]:
    """Ask for plain weights without a mark of quantisation on them, so that the model saves and reloads as any other.

    Versions of transformers without GgufConfig know nothing else.
    """
    packing = getattr(transformers, "GgufConfig", None)
    return {} if packing is None else {"quantization_config": packing(dequantize=True)}


class _PlainReader(gguf.GGUFReader):
    """A GGUFReader over a plain array: it takes a slice for each vocabulary entry, three times slower on a memmap."""

    @property
    def data(self) -> np.ndarray:
        return self._plain

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._plain = np.asarray(mapped)


@contextmanager
def parsed_once() -> Iterator[None]:
    """Let transformers parse a file once, build its name map once, and draw no bar, while it loads.

    It parses the file anew for config, tokenizer and weights, and builds the same name map for every
    submodule. Both are pure functions of an unchanged file, so remembering them changes nothing but
    the time: 20 s become 5 s for a model of 135M parameters in 30 layers.
    """
    once = functools.lru_cache(maxsize=1)
    with ExitStack() as stack:
        stack.enter_context(_replaced(gguf, "GGUFReader", once(_PlainReader)))
        stack.enter_context(_replaced(gguf, "get_tensor_name_map", once(gguf.get_tensor_name_map)))
        stack.enter_context(_replaced(modeling_gguf_pytorch_utils, "tqdm", lambda items, **_: items))
        yield


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
