"""Every method on a language model and on a classifier with a new head: conformance, PEFT's files, PEFT's outputs."""

import copy
import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from expected import raises
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft_models import BATCH, LABEL_BATCH, LM_BATCH, bert, llama, load_bert, load_llama, load_packed
from safetensors.torch import load_file

from ftengine.errors import BaseMismatch, RecipeError
from ftengine.testing import check_strategy
from ftengine_peft import LEFT_OUT
from ftengine_peft.files import CHOOSING
from ftengine_peft.methods import IGNORED
from ftengine_peft.offered import strategies
from ftengine_peft.options import OWNED, UNUSABLE

METHODS = {method.name: method for method in strategies()}
OPTIONS = {
    "peft-adaption-prompt": {"adapter_len": 4, "adapter_layers": 2},
    "peft-c3a": {"block_size": 16},
    "peft-fourierft": {"n_frequency": 50},
    "peft-miss": {"r": 4},
    "peft-oft": {"oft_block_size": 8},
    "peft-psoft": {"r": 8},
    "peft-road": {"group_size": 16},
    "peft-shira": {"r": 4},
    "peft-trainable-tokens": {"token_indices": [5, 6, 12]},
    "peft-unilora": {"theta_d_length": 64},
    "peft-vblora": {"vector_length": 16, "num_vectors": 16},
    "peft-waveft": {"n_frequency": 50},
}
"""Where the defaults are for layers larger than these."""
LLAMA_ONLY = {"peft-adaption-prompt": "is for Llama and the like", "peft-ln-tuning": "does not know BERT's norms"}
CASES = [
    *((name, load_llama, llama, LM_BATCH) for name in METHODS),
    *((name, load_bert, bert, LABEL_BATCH) for name in METHODS if name not in LLAMA_ONLY),
]
EACH = pytest.mark.parametrize(("name", "load", "base", "batch"), CASES, ids=lambda x: getattr(x, "__name__", None))
# The (IA)³ of a feed-forward layer and the like compute in another order when they are loaded.
SAME = {"rtol": 0, "atol": 1e-6}


def make(name):
    method = METHODS[name]
    return method(method.Config(**OPTIONS.get(name, {})))


def outputs(model):
    with torch.no_grad():
        return model.eval()(**BATCH).logits


@pytest.fixture
def trained(name, load, batch):
    """A strategy and its model after a step."""
    torch.manual_seed(1)
    strategy, loaded = make(name), load()
    strategy.prepare(loaded)
    for path in loaded.new_modules:
        loaded.module.get_submodule(path).requires_grad_(True)
    optimizer = torch.optim.AdamW(strategy.param_groups(loaded.module, 0.01, 0.0))
    loaded.module.train()(**batch).loss.backward()
    optimizer.step()
    return strategy, loaded


def peft_config(name, load, batch):
    config = copy.deepcopy(make(name).config).peft_config()
    config.task_type = "CAUSAL_LM" if batch is LM_BATCH else "SEQ_CLS"
    return config


def peft_folder(name, load, batch, folder):
    """What PEFT itself saves of this method."""
    get_peft_model(load().module, peft_config(name, load, batch)).save_pretrained(folder)
    return folder


@EACH
def test_the_conformance_suite(name, load, base, batch):
    expected = {}
    if (name, load) == ("peft-beft", load_llama):
        merging = "merging_keeps_the_outputs", "merging_leaves_nothing_behind"
        every = *merging, "the_merged_model_opens_without_the_strategy"
        expected = dict.fromkeys(every, "PEFT adds biases, and Llama's layers have none to hold them")
    elif name == "peft-osf":
        expected = {"it_trains_in_bfloat16": "PEFT's hook on gradients gives back another dtype"}
    elif (name, load) == ("peft-ln-tuning", load_llama):
        expected = {"it_trains_in_bfloat16": "PEFT's copy of an RMS norm, in float32, gives float32"}
    check_strategy(lambda: make(name), load, batch, expected_failed_checks=expected)


@EACH
def test_files_have_the_keys_of_pefts_own(name, load, base, batch, trained, tmp_path):
    strategy, loaded = trained
    (tmp_path / "ours").mkdir()
    strategy.save(loaded, tmp_path / "ours")
    theirs = peft_folder(name, load, batch, tmp_path / "theirs")
    shapes = [
        {key: (tensor.shape, tensor.dtype) for key, tensor in load_file(folder / "adapter_model.safetensors").items()}
        for folder in (tmp_path / "ours", theirs)
    ]
    if (name, load) == ("peft-trainable-tokens", load_bert):  # of which PEFT leaves a new head out; but it reads one
        shapes[1] |= {key: shapes[0][key] for key in shapes[0] if key.startswith("base_model.model.classifier.")}
    assert shapes[0] == shapes[1]
    ours, theirs = (json.loads((tmp_path / x / "adapter_config.json").read_text()) for x in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    named = {"base_model_name_or_path", "target_modules"}  # a set of names, in the order of its hashes
    assert {k: v for k, v in ours.items() if k not in named} == {k: v for k, v in theirs.items() if k not in named}
    assert sorted(ours.get("target_modules") or ()) == sorted(theirs.get("target_modules") or ())


@EACH
def test_peft_gives_the_same_outputs(name, load, base, batch, trained, tmp_path):
    strategy, loaded = trained
    strategy.save(loaded, tmp_path)
    fresh = base()
    if batch is LABEL_BATCH:
        torch.nn.init.zeros_(fresh.classifier.weight)  # the file has to bring it
    torch.manual_seed(2)
    opened = PeftModel.from_pretrained(fresh, str(tmp_path))
    torch.testing.assert_close(outputs(opened), outputs(loaded.module), **SAME)


@EACH
def test_a_loaded_adapter_answers_alike_under_another_seed(name, load, base, batch, trained, tmp_path):
    strategy, loaded = trained
    strategy.save(loaded, tmp_path)
    torch.manual_seed(3)
    again, other = make(name), load()
    again.prepare(other)
    again.load(other, tmp_path)
    torch.testing.assert_close(outputs(other.module), outputs(loaded.module), **SAME)


@EACH
def test_what_peft_trained_gives_the_same_outputs(name, load, base, batch, tmp_path):
    torch.manual_seed(3)
    theirs = get_peft_model(base(), peft_config(name, load, batch))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    theirs.save_pretrained(tmp_path)
    if (name, load) == ("peft-trainable-tokens", load_bert):
        return  # PEFT leaves a new head out of its file
    torch.manual_seed(4)
    strategy, loaded = make(name), load()
    strategy.prepare(loaded)
    strategy.load(loaded, tmp_path)
    torch.testing.assert_close(outputs(loaded.module), outputs(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_key_of_pefts_file_says_what_the_model_is_prepared_with(name, tmp_path):
    """Another value of any key that may change what is computed is refused by name, one of a later version too."""
    strategy, loaded = make(name), load_llama()
    strategy.prepare(loaded)
    strategy.save(loaded, tmp_path)
    file = tmp_path / "adapter_config.json"
    content = json.loads(file.read_text())
    without_effect = OWNED | CHOOSING | IGNORED.get(strategy.peft_type, frozenset())
    tried = {key for key in content if key not in without_effect and not re.search("dropout|init", key)}
    words = {key for key in content if "init" in key and isinstance(content[key], (bool, str))}
    for key in (tried | words | {"of_a_later_version"}) - without_effect:
        file.write_text(json.dumps(content | {key: "another"}))
        with raises(BaseMismatch, key, "'another'"):
            strategy.load(loaded, tmp_path)


def test_an_initialisation_that_changes_the_base_is_not_read_as_another(tmp_path):
    get_peft_model(llama(), LoraConfig(init_lora_weights="pissa", target_modules=["q_proj"])).save_pretrained(tmp_path)
    method, loaded = METHODS["peft-lora"], load_llama()
    strategy = method(method.Config(target_modules=["q_proj"]))
    strategy.prepare(loaded)
    with raises(BaseMismatch, "init_lora_weights", "pissa"):
        strategy.load(loaded, tmp_path)


NEEDS_WEIGHTS = (
    *("deft", "delora", "glora", "hira", "hra", "loha", "lokr", "osf", "peanut", "psoft", "shira", "supertuning"),
    *("tinylora", "unilora"),
)
"""Methods that read weights, or go by their shape or type."""
ONLY_IN_4_BITS = ("loha", "lokr")
VARIANTS = [{"use_dora": True}, *({"init_lora_weights": init} for init in ("olora", "orthogonal", "pissa"))]
PACKED = [(name, OPTIONS.get(name, {})) for name in METHODS] + [("peft-lora", options) for options in VARIANTS]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("name", "options"), PACKED, ids=str)
def test_on_packed_weights_a_method_trains_or_is_refused(name, options, bits):
    """It is refused on the model without values already."""
    method, short = METHODS[name], name.removeprefix("peft-")
    refused = options in VARIANTS or (short in NEEDS_WEIGHTS and not (bits == 8 and short in ONLY_IN_4_BITS))
    if refused:
        for meta in (True, False):
            with raises(RecipeError, name, "14 layers", "q_proj", "PackedLinear"):
                method(method.Config(**options)).prepare(load_packed(bits, meta))
        return
    torch.manual_seed(1)
    strategy, loaded = method(method.Config(**options)), load_packed(bits)
    strategy.prepare(loaded)
    loss = loaded.module.train()(**LM_BATCH).loss
    loss.backward()
    gradients = [p.grad for p in loaded.module.parameters() if p.requires_grad]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)
    method(method.Config(**options)).prepare(load_packed(bits, meta=True))


ALLOCATING = {"init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 2, "deltaT": 2}
STEPS = 7


def by_peft(folder):
    """Train with AdaLoRA as PEFT's documentation has it; return the model and its losses."""
    torch.manual_seed(1)
    options = {**ALLOCATING, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    config = AdaLoraConfig(**options, total_step=STEPS)
    model = get_peft_model(llama(), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for step in range(1, STEPS + 1):
        loss = model(**LM_BATCH).loss
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    model.save_pretrained(folder)
    return model, losses


def test_adalora_trains_as_in_peft(tmp_path):
    theirs, losses = by_peft(tmp_path / "theirs")
    torch.manual_seed(1)
    method = METHODS["peft-adalora"]
    strategy, loaded = method(method.Config(**ALLOCATING, target_modules=["q_proj", "v_proj"])), load_llama()
    strategy.prepare(loaded)
    regularizer, model = strategy.regularizer(STEPS), loaded.module.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(1, STEPS + 1):
        loss = model(**LM_BATCH).loss
        loss = loss + regularizer.penalty(model, LM_BATCH, loss)
        assert loss.item() == pytest.approx(losses[step - 1], abs=1e-5)
        loss.backward()
        optimizer.step()
        regularizer.on_step_end(model, step)
        optimizer.zero_grad()
    (tmp_path / "ours").mkdir()
    strategy.save(loaded, tmp_path / "ours")
    weights = [load_file(tmp_path / side / "adapter_model.safetensors") for side in ("ours", "theirs")]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)
    configs = [json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("ours", "theirs")]
    assert configs[0]["total_step"] == configs[1]["total_step"] == STEPS
    assert configs[0]["rank_pattern"] == configs[1]["rank_pattern"]
    ranks = [sum(kept) for kept in configs[0]["rank_pattern"].values()]
    assert sum(ranks) == 3 * len(ranks)  # the budget
    assert len(set(ranks)) > 1  # which moved between layers
    for folder in ("ours", "theirs"):
        again, other = method(method.Config(**ALLOCATING, target_modules=["q_proj", "v_proj"])), load_llama()
        again.prepare(other)
        again.load(other, tmp_path / folder)
        torch.testing.assert_close(outputs(other.module), outputs(theirs), rtol=0, atol=1e-4)
    opened = PeftModel.from_pretrained(llama(), str(tmp_path / "ours"))
    torch.testing.assert_close(outputs(opened), outputs(other.module), **SAME)
    again.merge(other)
    torch.testing.assert_close(outputs(other.module), outputs(opened), rtol=0, atol=1e-4)


def test_every_method_of_peft_is_a_strategy_or_left_out_for_a_reason():
    offered = {method.peft_type for method in METHODS.values()}
    assert offered | LEFT_OUT.keys() == {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert not offered & LEFT_OUT.keys()


def test_the_readme_lists_every_method():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for method in METHODS.values():
        assert f"| `{method.name}` | {method.__doc__.removeprefix('Train ').partition(' (PEFT')[0]} |" in text
    for kind, reason in LEFT_OUT.items():
        assert f"| {kind} | {reason} |" in text


def test_the_readme_names_each_option_that_is_left_out():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"`(\w+)`", text.partition("Not among them are")[2].partition("PEFT's defaults")[0])
    fields = {field.name for method in METHODS.values() for field in dataclasses.fields(method.Config.made_from)}
    assert set(told) & fields == ((OWNED | UNUSABLE) & fields) | {"init_lora_weights"}
