"""Models of the task tests."""

import pytest
import torch
from transformers import AutoModelForCausalLM


@pytest.fixture
def llama(llama_folder):
    """A tiny Llama with tied embeddings, in fp64 so that two ways of summing agree to 1e-12."""
    return AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float64)
