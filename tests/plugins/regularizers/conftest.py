"""Models prepared by a strategy, as regularizers see them, and batches for them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from ftengine.api import LoadedModel
from ftengine.engine.prepared_data import apply_strategy
from ftengine_builtins.strategies.full import Full
from ftengine_builtins.strategies.lora import LoRA
from ftengine_builtins.tasks.causal_lm import CausalLM
from ftengine_builtins.tasks.seq2seq_lm import Seq2SeqLM
from ftengine_builtins.tasks.text_classification import TextClassification

TEXTS = ("The film was wonderful", "Shares rose this year", "The match ended in a draw", "My computer does not start")


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory):
    from tiny import tiny_t5

    return tiny_t5(tmp_path_factory.mktemp("models") / "t5", dropout_rate=0.1)


@pytest.fixture
def make(request):
    """Build (loaded, task, batch) of a kind and strategy; in fp64, so that formulas hold to 1e-9."""

    def make(kind, strategy=None, /, dtype=torch.float64, **task_options):
        folder = request.getfixturevalue({"classes": "bert", "text": "llama", "pairs": "t5"}[kind] + "_folder")
        processor = AutoTokenizer.from_pretrained(folder)
        torch.manual_seed(0)
        if kind == "classes":
            task = TextClassification(TextClassification.Config(**task_options))
            labels = [["a", "b", "c", "a"], [0.5, 1.25, 3.0, -1.0]][task.config.kind == "regression"]
            rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
            module = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=dtype)
            loaded = LoadedModel(module, processor, str(folder), "sequence-classification", ("classifier",))
        else:
            task = CausalLM() if kind == "text" else Seq2SeqLM()
            rows = [{"prompt": text, "completion": f" {text} again"} for text in TEXTS]
            cls = AutoModelForCausalLM if kind == "text" else AutoModelForSeq2SeqLM
            loaded = LoadedModel(cls.from_pretrained(folder, dtype=dtype), processor, str(folder), task.head)
        task.labels = task.learn_labels({"train": rows})
        apply_strategy(strategy or Full(), loaded)
        loaded.module.train()
        batch = task.collate([task.encode(row, processor) for row in rows], processor)
        return SimpleNamespace(loaded=loaded, module=loaded.module, task=task, batch=batch)

    return make


@pytest.fixture
def lora():
    """LoRA whose B is not zero, so that its update shows."""

    def build(**options):
        return LoRA(LoRA.Config(rank=4, **options))

    return build
