"""GGUF files to load: the real one, loaded once a session, and a tiny one to damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_file import write_llama_gguf

from ftengine.api import LoadedModel, LoadRequest
from ftengine_builtins.loaders.gguf import GgufLoader


@pytest.fixture(scope="session")
def smollm2_loader() -> GgufLoader:
    return GgufLoader()


@pytest.fixture(scope="session")
def smollm2(smollm2_loader, smollm2_gguf) -> LoadedModel:
    return smollm2_loader.load(LoadRequest(str(smollm2_gguf), "causal-lm"))


@pytest.fixture(scope="session")
def tiny_gguf(llama_folder, tmp_path_factory) -> Path:
    """The tiny Llama as llama.cpp's converter would lay it out, in float32."""
    return write_llama_gguf(llama_folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    return write_llama_gguf
