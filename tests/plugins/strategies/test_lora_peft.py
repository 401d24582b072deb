"""Adapters cross between ftengine and PEFT in both directions, with zero missing and unexpected keys."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from expected import raises
from lora_models import opened_by_peft, prepared
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from ftengine.api import LoadedModel
from ftengine.errors import BaseMismatch, RecipeError, RunError
from ftengine.model import trainable
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig
from ftengine_builtins.strategies.lora_layers import lora_layers
from ftengine_builtins.strategies.peft_format import target_modules

TASKS = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}


def saved(strategy: LoRA, loaded: LoadedModel, folder: Path) -> Path:
    folder.mkdir()
    strategy.save(loaded, folder)
    return folder


def trained_by_peft(loaded: LoadedModel, folder: Path, numbers, **options) -> PeftModel:
    """Save an adapter with PEFT, for the model as it is."""
    options = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "target_modules": "all-linear", **options}
    config = PeftConfig(task_type=TASKS[loaded.head], **options)
    model = get_peft_model(copy.deepcopy(loaded.module), config)
    numbers.shake(model)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model


def test_config_says_what_peft_needs(loaded, tmp_path) -> None:
    strategy = prepared(loaded, rank=4, alpha=6, dropout=0.1, rslora=True)
    folder = saved(strategy, loaded, tmp_path / "adapter")
    text = (folder / "adapter_config.json").read_text()
    content = json.loads(text)
    assert text == json.dumps(content, indent=2, sort_keys=True) + "\n"
    expected = {
        "peft_type": "LORA",
        "task_type": TASKS[loaded.head],
        "base_model_name_or_path": loaded.source,
        "inference_mode": True,
        "r": 4,
        "lora_alpha": 6,
        "lora_dropout": 0.1,
        "bias": "none",
        "use_rslora": True,
        "use_dora": False,
        "fan_in_fan_out": type(loaded.module).__name__.startswith("GPT2"),
        "modules_to_save": list(loaded.new_modules) or None,
    }
    assert {key: content[key] for key in expected} == expected
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32}  # noqa: SIM118


@pytest.mark.parametrize(
    ("kind", "fresh", "names"),
    [
        # PEFT wraps whatever ends in 'classifier', so this 'pre_classifier' has to be in the file as well.
        ("distilbert", ("classifier",), ["classifier", "pre_classifier"]),
        ("bert", ("bert.pooler", "classifier"), ["classifier", "pooler"]),
        # Other modules end in 'dense' too: only the whole path is clear.
        ("bert", ("bert.pooler.dense", "classifier"), ["bert.pooler.dense", "classifier"]),
        ("roberta", ("classifier",), ["classifier"]),
    ],
)
def test_peft_loads_heads_of_every_kind(numbers, tmp_path, kind: str, fresh, names: list[str]) -> None:
    size = {"vocab_size": 70, "num_labels": 3}
    layers = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    module = {
        "distilbert": lambda: DistilBertForSequenceClassification(
            DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=8, **size)
        ),
        "bert": lambda: BertForSequenceClassification(BertConfig(**layers, **size)),
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**layers, **size)),
    }[kind]()
    base = copy.deepcopy(module)
    loaded = LoadedModel(module, None, kind, "sequence-classification", new_modules=fresh)
    strategy = prepared(loaded)
    numbers.shake(module)
    folder = saved(strategy, loaded, tmp_path / "adapter")
    assert json_of(folder)["modules_to_save"] == names
    opened_by_peft(base, folder)


def test_training_continues_from_pefts_adapter(loaded, numbers, tmp_path) -> None:
    base = copy.deepcopy(loaded.module)
    peft = trained_by_peft(loaded, tmp_path / "adapter", numbers, target_modules="all-linear", use_rslora=True)
    strategy = prepared(loaded, start_from=str(tmp_path / "adapter"))
    config = strategy.config
    assert (config.rank, config.alpha, config.dropout, config.rslora) == (4, 6, 0.1, True)
    assert set(lora_layers(loaded.module)) == set(peft.targeted_module_names)
    started = {name: parameter.clone() for name, parameter in trainable(loaded.module).items()}

    optimizer = torch.optim.AdamW(strategy.param_groups(loaded.module, 1e-2, weight_decay=0.0))
    losses = []
    for _ in range(5):
        loss = loaded.module.eval()(**numbers.batch(loaded.module)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        assert losses[0] == pytest.approx(peft.eval()(**numbers.batch(base)).loss.item(), rel=1e-5)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(started[name], parameter) for name, parameter in trainable(loaded.module).items())
    opened_by_peft(base, saved(strategy, loaded, tmp_path / "continued"))


def test_an_adapter_that_cannot_be_written_is_an_error(llama_folder, load, tmp_path) -> None:
    loaded = load(llama_folder)
    with raises(RunError, "cannot write"):
        prepared(loaded).save(loaded, tmp_path / "missing")


def test_all_linear_beside_start_from_is_refused_where_the_adapter_is_on_fewer_layers(
    llama_folder, load, tmp_path
) -> None:
    """A recipe of `ftengine init` says all-linear, and an adapter's file lists layers."""
    adapters = {}
    for targets in ("all-linear", ["q_proj", "v_proj"]):
        loaded = load(llama_folder)
        adapters[len(targets)] = str(saved(prepared(loaded, targets=targets), loaded, tmp_path / str(len(targets))))
    every, two = adapters.values()
    continued = load(llama_folder)
    prepared(continued, targets="all-linear", start_from=every)
    assert len(lora_layers(continued.module)) == 14
    with raises(RecipeError, "strategy.targets", "14 layers", "on 4"):
        prepared(load(llama_folder), targets="all-linear", start_from=two)


def json_of(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


def write_json(folder: Path, content: dict) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(content))


@pytest.fixture
def adapter(llama_folder, load, tmp_path) -> Path:
    """An adapter of rank 8 for the tiny Llama."""
    loaded = load(llama_folder)
    return saved(prepared(loaded), loaded, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"r": None}, "r=None"),
        ({"r": 0}, "r=0"),
        ({"r": "8"}, "r='8'"),
        ({"target_modules": None}, "target_modules=None"),
    ],
)
def test_a_malformed_config_is_an_error(adapter, change: dict, message: str) -> None:
    write_json(adapter, {**json_of(adapter), **change})
    with raises(RunError, message):
        LoRAConfig(start_from=str(adapter))


def test_a_pickle_is_not_read(llama_folder, load, adapter) -> None:
    loaded = load(llama_folder)
    strategy = prepared(loaded)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with raises(RunError, "adapter_model.safetensors"):
        strategy.load(loaded, adapter)


def test_a_missing_or_truncated_file_is_an_error(llama_folder, load, adapter) -> None:
    loaded = load(llama_folder)
    strategy = prepared(loaded)
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with raises(RunError, "safetensors"):
        strategy.load(loaded, adapter)
    file.unlink()
    with raises(RunError, "missing"):
        strategy.load(loaded, adapter)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, "rank 8"),
        ({"alpha": 8}, "alpha 16.0"),
        ({"rslora": True}, "rslora False"),
        ({"targets": ["q_proj"]}, "24 unexpected"),
    ],
)
def test_an_adapter_of_other_options_is_refused(llama_folder, load, adapter, options, message: str) -> None:
    loaded = load(llama_folder)
    strategy = prepared(loaded, **options)
    before = {name: parameter.clone() for name, parameter in trainable(loaded.module).items()}
    with raises(BaseMismatch, message):
        strategy.load(loaded, adapter)
    assert all(torch.equal(before[name], parameter) for name, parameter in trainable(loaded.module).items())


def test_an_adapter_of_another_base_is_refused(load, adapter, tmp_path, gpt2_folder) -> None:
    from tiny import tiny_llama

    wider = load(tiny_llama(tmp_path / "wider", hidden_size=96))
    with raises(BaseMismatch, "(8, 64)", "(8, 96)"):
        prepared(wider).load(wider, adapter)
    deeper = load(tiny_llama(tmp_path / "deeper", num_hidden_layers=3))
    with raises(BaseMismatch, "14 keys missing"):
        prepared(deeper).load(deeper, adapter)
    other = load(gpt2_folder)
    with raises(BaseMismatch, "16 keys missing", "28 unexpected"):
        prepared(other).load(other, adapter)


def test_target_names_are_short_where_they_can_be_and_exact_always() -> None:
    block = nn.ModuleDict({"query": nn.Linear(2, 2), "dense": nn.Linear(2, 2)})
    model = nn.ModuleDict({"block": block, "head": nn.ModuleDict({"dense": nn.Linear(2, 2)})})
    assert target_modules(model, ["block.query"]) == ["query"]
    assert target_modules(model, ["block.query", "block.dense"]) == ["block.dense", "block.query"]
    nested = nn.ModuleDict({"block": copy.deepcopy(block), "teacher": nn.ModuleDict({"block": block})})
    assert target_modules(nested, ["block.query"]) == r"block\.query"
    for module, paths in ((model, {"block.query", "block.dense"}), (nested, {"block.query"})):
        config = PeftConfig(target_modules=target_modules(module, paths))
        assert set(get_peft_model(copy.deepcopy(module), config).targeted_module_names) == paths


@pytest.mark.slow
def test_smollm2_crosses_to_peft_and_back(smollm2_gguf, numbers, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    pristine = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    )

    def fresh() -> LoadedModel:
        return LoadedModel(copy.deepcopy(pristine), None, str(smollm2_gguf), "causal-lm")

    loaded = fresh()
    strategy = prepared(loaded, dropout=0.0)
    optimizer = torch.optim.AdamW(strategy.param_groups(loaded.module, 1e-3, weight_decay=0.0))
    for _ in range(2):
        loaded.module.train()(**numbers.batch(loaded.module)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = saved(strategy, loaded, tmp_path / "adapter")
    ours = numbers.logits(loaded.module)

    again = fresh()
    continued = prepared(again, start_from=str(folder))
    assert torch.equal(numbers.logits(again.module), ours)
    continued.merge(again)

    before = numbers.logits(pristine)
    peft = opened_by_peft(pristine, folder)
    theirs = numbers.logits(peft, pristine)
    exact = numbers.logits(peft.double(), pristine)
    numbers.assert_as_exact(ours, theirs, exact, torch.float32)
    numbers.assert_as_exact(numbers.logits(again.module), theirs, exact, torch.float32)
    assert not torch.equal(before, ours)
