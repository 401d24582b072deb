"""Numbers of parameters, as the papers have them; models are built on the meta device."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaModel

from ftengine.api import LoadedModel
from ftengine.model import count
from ftengine_builtins.strategies.adapter import Adapter, AdapterConfig

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}

MODELS = {
    "bert-base": (BertModel, BertConfig(**BASE)),
    "bert-large": (BertModel, BertConfig(**LARGE)),
    "roberta-large": (RobertaModel, RobertaConfig(**LARGE, vocab_size=50265, max_position_embeddings=514)),
    "gpt2-medium": (GPT2LMHeadModel, GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
}


def counted(model: str, **options) -> tuple[int, int]:
    """Return (what trains, what was there before)."""
    model_class, config = MODELS[model]
    with torch.device("meta"):
        module = model_class(config)
    base = count(module)[1]
    Adapter(AdapterConfig(**options)).prepare(LoadedModel(module, None, "memory", "feature-extraction"))
    return count(module)[0], base


@pytest.mark.parametrize("m", [8, 64, 256])
def test_houlsby_adds_what_section_2_1_says(m: int) -> None:
    """2md + d + m an adapter, two adapters a layer (arXiv:1902.00751, §2.1), in BERT-large with d = 1024."""
    trained, base = counted("bert-large", placement="houlsby", bottleneck=m)
    assert trained == 24 * 2 * (2 * m * 1024 + 1024 + m)
    assert trained / base < 0.08  # "around 0.5 - 8% of the parameters of the original model"


@pytest.mark.parametrize(("model", "layers", "d"), [("bert-base", 12, 768), ("bert-large", 24, 1024)])
@pytest.mark.parametrize("factor", [64, 16, 2])
def test_pfeiffer_adds_one_adapter_a_layer(model: str, layers: int, d: int, factor: int) -> None:
    """One adapter a layer, of size d / reduction (arXiv:2005.00247; rates as in arXiv:2007.07779, table 2)."""
    m = d // factor
    assert counted(model, placement="pfeiffer", reduction_factor=factor)[0] == layers * (2 * m * d + d + m)


def test_pfeiffer_with_its_defaults_has_size_48_in_bert_base() -> None:
    assert counted("bert-base")[0] == 12 * (2 * 768 * 48 + 48 + 768) == 894_528


@pytest.mark.parametrize(
    ("model", "placement", "r", "millions"),
    [("roberta-large", "pfeiffer", 16, 0.8), ("roberta-large", "houlsby", 8, 0.8)],
)
def test_adapters_of_the_lora_paper(model: str, placement: str, r: int, millions: float) -> None:
    """Hu et al. 2021 (arXiv:2106.09685), table 2, rows Adpt^P and Adpt^H of 0.8M."""
    assert round(counted(model, placement=placement, bottleneck=r)[0] / 1e6, 1) == millions


def test_parallel_has_half_the_width_beside_the_feed_forward() -> None:
    trained, _ = counted("gpt2-medium", placement="parallel")
    assert trained == 24 * (2 * 1024 * 512 + 512 + 1024)
