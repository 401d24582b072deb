"""Tokenizers and models of the task tests, each loaded once a session."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_gguf):
    """The tokenizer and chat template of SmolLM2-135M-Instruct."""
    return AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)


@pytest.fixture(scope="session")
def _llama_tokenizer(llama_folder):
    return AutoTokenizer.from_pretrained(llama_folder)


@pytest.fixture
def llama_tokenizer(_llama_tokenizer):
    """A tiny byte-level BPE with ChatML; a copy, so that a test may give it another template."""
    from copy import deepcopy

    return deepcopy(_llama_tokenizer)


@pytest.fixture
def llama(llama_folder):
    """A tiny Llama with tied embeddings, in fp64 so that two ways of summing agree to 1e-12."""
    return AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float64)
