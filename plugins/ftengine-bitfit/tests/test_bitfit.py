"""BitFit passes the conformance suite; what it cannot train, it refuses by name."""

import pytest
import torch
from expected import raises
from pydantic import ValidationError
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from ftengine import api
from ftengine.errors import NoMatch
from ftengine.testing import check_strategy
from ftengine_bitfit.strategy import BitfitStrategy

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": torch.tensor([0, 2])}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 50}


def load():
    """A BERT with a fresh head; weights are large, so that its layers matter."""
    torch.manual_seed(0)
    module = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3, initializer_range=0.5))
    return api.LoadedModel(module, None, "bert", "sequence-classification", new_modules=("classifier",))


def prepared(**options):
    strategy, loaded = BitfitStrategy(BitfitStrategy.Config(**options)), load()
    strategy.prepare(loaded)
    return strategy, loaded


def test_the_conformance_suite():
    check_strategy(BitfitStrategy, load, BATCH)


def test_biases_train_and_nothing_else():
    _, loaded = prepared()
    training = {name for name, p in loaded.module.named_parameters() if p.requires_grad}
    assert training == {name for name, _ in loaded.module.named_parameters() if name.endswith(".bias")}


def test_each_ending_names_its_modules():
    strategy, _ = prepared(endings=["query.bias", "LayerNorm.bias"])
    query, norms = strategy.matches().values()
    assert query == ["bert.encoder.layer.0.attention.self.query"]
    assert len(norms) == 3


def test_an_ending_of_no_parameter_is_refused_with_what_there_is():
    with raises(NoMatch, "biass"):
        prepared(endings=["biass"])


def test_a_model_without_biases_is_refused():
    module = LlamaForCausalLM(LlamaConfig(**SIZES))
    with raises(NoMatch, "LlamaForCausalLM", "'bias'"):
        BitfitStrategy().prepare(api.LoadedModel(module, None, "llama", "causal-lm"))


@pytest.mark.parametrize("options", [{"endings": []}, {"endings": "bias"}, {"biases": ["bias"]}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        BitfitStrategy.Config(**options)
