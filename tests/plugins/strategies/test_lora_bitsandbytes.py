"""LoRA beside layers that bitsandbytes has really quantised, where it is installed."""

from __future__ import annotations

import pytest
import torch
from expected import raises
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from ftengine.api import LoadedModel
from ftengine.errors import NotMergeable, RecipeError
from ftengine.model import trainable
from ftengine_builtins.strategies.full import Full
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")

PACKINGS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(params=PACKINGS)
def quantised(request, llama_folder):
    """Load the tiny Llama and quantise it: () -> LoadedModel."""

    def load() -> LoadedModel:
        packing = BitsAndBytesConfig(**PACKINGS[request.param])
        module = AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=packing, dtype=torch.float32)
        return LoadedModel(module, AutoTokenizer.from_pretrained(llama_folder), str(llama_folder), "causal-lm")

    return load


def test_lora_trains_beside_a_packed_base_and_comes_back(quantised, numbers, tmp_path) -> None:
    loaded, strategy = quantised(), LoRA(LoRAConfig(dropout=0.0))
    assert not loaded.module.model.layers[0].self_attn.q_proj.weight.is_floating_point()
    base = numbers.logits(loaded.module)
    strategy.prepare(loaded)
    assert torch.equal(numbers.logits(loaded.module), base)
    frozen = {name: p.detach().clone() for name, p in loaded.module.named_parameters() if not p.requires_grad}

    optimizer = torch.optim.AdamW(trainable(loaded.module).values(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = loaded.module(**numbers.batch(loaded.module)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    now = dict(loaded.module.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in frozen.items())

    strategy.save(loaded, tmp_path)
    again = quantised()
    LoRA(LoRAConfig(start_from=str(tmp_path))).prepare(again)
    assert torch.equal(numbers.logits(again.module), numbers.logits(loaded.module))
    with raises(NotMergeable, "unquantised"):
        strategy.merge(loaded)


def test_packed_weights_do_not_train_whole(quantised) -> None:
    with raises(RecipeError, "model.source"):
        Full().prepare(quantised())
