"""Models in half precision compute as a copy in float32 does, without one, and without what a step would not keep."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ftengine.model import in_float32 as module_under_test
from ftengine.model.in_float32 import in_float32
from ftengine.testing.models import tiny_llama

WIDTH, WORDS = 16, 4096


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest new float32 tensor has."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype is torch.float32 and type(made) is torch.Tensor:
            self.numbers = max(self.numbers, made.numel())
        return made


def gradients(model, ids):
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_computes_as_its_copy_in_float32_without_a_copy_of_its_tables(monkeypatch, tied, recompute):
    monkeypatch.setattr(module_under_test, "PART", 1 << 12)
    torch.manual_seed(0)
    model, _ = tiny_llama(vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=32, tie_word_embeddings=tied)
    model = model.to(torch.bfloat16).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
        parameter.data = parameter.data.float() if "norm" in name else parameter.data
    ids, largest, calls = torch.arange(6)[None], Largest(), []
    logits, expected = gradients(copy.deepcopy(model).float(), ids)
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    weights = dict(model.named_parameters())
    with in_float32(model, recompute=recompute), largest:
        found, slopes = gradients(model, ids)
    assert torch.equal(found, logits)
    assert slopes.keys() == expected.keys()
    for name, slope in slopes.items():
        assert float((slope - expected[name]).norm() / expected[name].norm()) < 1e-4, name
    assert largest.numbers < WORDS * WIDTH
    assert len(calls) == 1 + recompute
    assert all(parameter is weights[name] for name, parameter in model.named_parameters())
    assert not any("forward" in vars(block) for block in model.model.layers)
