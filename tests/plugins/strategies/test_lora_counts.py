"""Numbers of trained parameters are those of Hu et al. 2021 (arXiv:2106.09685), tables 2 to 4.

They need configurations only: the models are built on the meta device.
"""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, RobertaConfig, RobertaForSequenceClassification

from ftengine.api import LoadedModel
from ftengine.model import count
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig
from ftengine_builtins.strategies.lora_layers import lora_layers


def roberta(hidden: int, layers: int) -> PreTrainedModel:
    config = RobertaConfig(
        vocab_size=50265,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    return RobertaForSequenceClassification(config)


def gpt2(hidden: int, layers: int, heads: int, positions: int = 1024) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=hidden, n_layer=layers, n_head=heads, n_positions=positions))


def counted(build, rank: int, targets: list[str], dora: bool = False) -> tuple[int, int, LoadedModel]:
    """Return (parameters of LoRA, of the model without it, the prepared model)."""
    with torch.device("meta"):
        module = build()
    classifies = isinstance(module, RobertaForSequenceClassification)
    head, new = ("sequence-classification", ("classifier",)) if classifies else ("causal-lm", ())
    loaded = LoadedModel(module, None, "config.json", head, new_modules=new)
    total = count(module)[1]
    LoRA(LoRAConfig(rank=rank, targets=targets, dora=dora)).prepare(loaded)
    own = sum(
        p.numel() for layer in lora_layers(module).values() for n, p in layer.named_parameters() if n.startswith("lora")
    )
    heads = sum(p.numel() for name in new for p in module.get_submodule(name).parameters())
    assert count(module) == (own + heads, total + own)
    return own, total, loaded


@pytest.mark.parametrize(
    ("hidden", "layers", "published"),
    [(768, 12, "0.3M"), (1024, 24, "0.8M")],
    ids=["base", "large"],
)
def test_roberta_as_in_table_2(hidden: int, layers: int, published: str) -> None:
    own, total, _ = counted(lambda: roberta(hidden, layers), 8, ["query", "value"])
    assert own == layers * 2 * 2 * hidden * 8
    assert f"{own / 1e6:.1f}M" == published
    assert total / 1e6 == pytest.approx({768: 125, 1024: 355}[hidden], rel=0.01)  # the table's rows of full tuning


@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "published"),
    [(1024, 24, 16, 0.35e6), (1280, 36, 20, 0.77e6)],
    ids=["medium", "large"],
)
def test_gpt2_near_table_3(hidden: int, layers: int, heads: int, published: float) -> None:
    """Table 3 prints 0.35M and 0.77M.

    The settings that the paper gives beside it (table 11: query and value, r = 4) make 0.39M and 0.74M: no rank makes
    both printed numbers. GPT-2 keeps query, key and value in one layer, c_attn; A (r, d) and B (3d, r) there are as
    many numbers as two pairs for query and value.
    """
    own, total, _ = counted(lambda: gpt2(hidden, layers, heads), 4, ["c_attn"])
    assert own == layers * 2 * 2 * hidden * 4
    assert own == pytest.approx(published, rel=0.13)
    assert total / 1e6 == pytest.approx({1024: 354.92, 1280: 774.03}[hidden], abs=0.1)  # full tuning, same table


@pytest.mark.parametrize(("rank", "published"), [(1, "4.7M"), (8, "37.7M")])
def test_gpt3_as_in_table_4(rank: int, published: str) -> None:
    own, total, loaded = counted(lambda: gpt2(12288, 96, 96, 2048), rank, ["c_attn"])
    assert own == 96 * 2 * 2 * 12288 * rank
    assert f"{own / 1e6:.1f}M" == published
    assert f"{total / 1e9:.0f}B" == "175B"
    assert all(parameter.is_meta for parameter in loaded.module.parameters())


def test_dora_adds_a_number_for_each_output() -> None:
    plain, _, _ = counted(lambda: roberta(768, 12), 8, ["query", "value"])
    tuned, _, _ = counted(lambda: roberta(768, 12), 8, ["query", "value"], dora=True)
    assert tuned - plain == 12 * 2 * 768
