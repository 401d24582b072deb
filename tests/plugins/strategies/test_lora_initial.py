"""PiSSA and OLoRA start from the base's weights, leave the base alone, and are saved for the original base."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from expected import raises
from lora_models import opened_by_peft
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ftengine.api import LoadedModel
from ftengine.errors import BaseMismatch, RecipeError
from ftengine.model import state_tensors, trainable
from ftengine.ops import lowrank_add
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig

INITS = ["pissa", "pissa_niter_8", "olora"]


def prepared(loaded: LoadedModel, **options) -> LoRA:
    torch.manual_seed(0)
    strategy = LoRA(LoRAConfig(**{"rank": 4, "alpha": 6, "dropout": 0.0, "init": "pissa", **options}))
    strategy.prepare(loaded)
    return strategy


def one_layer(layer: nn.Module) -> LoadedModel:
    return LoadedModel(nn.Sequential(layer), None, "memory", "causal-lm")


def trained(strategy: LoRA, loaded: LoadedModel, numbers) -> None:
    """Take a few steps, so that A and B leave where they started."""
    optimizer = torch.optim.AdamW(strategy.param_groups(loaded.module, 1e-2, weight_decay=0.0))
    for _ in range(3):
        loaded.module.eval()(**numbers.batch(loaded.module)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def saved(strategy: LoRA, loaded: LoadedModel, folder: Path) -> Path:
    folder.mkdir()
    strategy.save(loaded, folder)
    return folder


@pytest.mark.parametrize("kind", [lambda: nn.Linear(12, 9), lambda: Conv1D(9, 12)], ids=["linear", "conv1d"])
def test_pissa_starts_from_the_best_approximation_of_its_rank(kind) -> None:
    torch.manual_seed(0)
    layer = kind()
    weight = layer.weight.detach().clone()
    prepared(one_layer(layer), alpha=3)
    u, s, vt = torch.linalg.svd(weight.t() if isinstance(layer, Conv1D) else weight)
    torch.testing.assert_close(
        layer.lora_scale * layer.lora_b @ layer.lora_a, u[:, :4] * s[:4] @ vt[:4], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(layer.lora_a.norm(dim=1), (s[:4] / layer.lora_scale).sqrt(), rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.weight, weight)


def test_olora_starts_with_orthonormal_columns() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 9)
    prepared(one_layer(layer), init="olora")
    torch.testing.assert_close(layer.lora_b.t() @ layer.lora_b, torch.eye(4))
    # Q Qᵀ W has the first r rows of R: B A is the projection of W on the columns of B.
    torch.testing.assert_close(layer.lora_b @ layer.lora_a, layer.lora_b @ layer.lora_b.t() @ layer.weight)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_training_equals_pefts(init: str, dora: bool) -> None:
    """The same steps from the same start; PEFT takes the start out of the weights, ftengine subtracts it."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 7))
    x, wanted = torch.randn(30, 12), torch.randn(30, 7)
    loaded = LoadedModel(copy.deepcopy(base), None, "memory", "causal-lm")
    prepared(loaded, init=init, dora=dora)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["0", "2"], "init_lora_weights": init, "use_dora": dora}
    peft = get_peft_model(copy.deepcopy(base), PeftConfig(**options))
    outputs = []
    for module in (loaded.module, peft):
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.05)
        for _ in range(5):
            F.mse_loss(module.train()(x), wanted).backward()
            optimizer.step()
            optimizer.zero_grad()
        outputs.append(module.eval()(x))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert (outputs[0] - base(x)).norm() > 0.01 * outputs[0].norm()


def test_what_the_layer_started_from_knows_no_dropout() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 9)
    prepared(one_layer(layer), dropout=0.5)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(30, 12)
    torch.manual_seed(5)
    ours = layer.train()(x)
    torch.manual_seed(5)
    residual = layer.weight + layer.lora_scale * layer.lora_b0 @ layer.lora_a0
    exact = lowrank_add(F.linear(x, residual, layer.bias), x, layer.lora_a, layer.lora_b, layer.lora_scale, 0.5)
    torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("init", INITS)
def test_outputs_are_the_bases_before_training(loaded, numbers, init: str) -> None:
    base = numbers.logits(loaded.module)
    prepared(loaded, init=init)
    # Adding the start and subtracting it again costs roundings, nothing else.
    assert (numbers.logits(loaded.module) - base).norm() <= 1e-5 * base.norm()


@pytest.mark.parametrize(
    "options",
    [
        {"init": "pissa"},
        {"init": "olora", "dora": True},
        {"init": "pissa", "rank_pattern": {"0\\..*": 2}, "alpha_pattern": {"1\\..*": 3}, "rslora": True},
    ],
    ids=["pissa", "dora", "patterns"],
)
def test_peft_loads_it_on_the_original_base(loaded, numbers, tmp_path, doubled, options: dict) -> None:
    if "rank_pattern" in options:
        options = {**options, "targets": r".*\.[01]\..*(q_proj|c_attn|query)"}
    base = copy.deepcopy(loaded.module)
    strategy = prepared(loaded, **options)
    trained(strategy, loaded, numbers)
    folder = saved(strategy, loaded, tmp_path / "adapter")
    content = json.loads((folder / "adapter_config.json").read_text())
    assert content["r"] == 8
    peft = opened_by_peft(base, folder)
    exact = numbers.logits(doubled(peft), base)
    assert (exact - numbers.logits(base)).norm() > 1e-3 * exact.norm()
    numbers.assert_as_exact(numbers.logits(loaded.module), numbers.logits(peft, base), exact, torch.float32)


def test_a_checkpoint_holds_what_training_started_from(llama_folder, load, numbers) -> None:
    """Another machine's SVD may differ in signs and digits; a resumed run goes on with the first one's."""
    loaded, resumed = load(llama_folder), load(llama_folder)
    strategy = prepared(loaded)
    trained(strategy, loaded, numbers)
    prepared(resumed)
    state = state_tensors(resumed.module)
    assert {name.rpartition(".")[2] for name in state} == {"lora_a", "lora_b", "lora_a0", "lora_b0"}
    with torch.no_grad():
        for tensor in state.values():
            tensor.zero_()
        for name, tensor in state_tensors(loaded.module).items():
            state[name].copy_(tensor)
    assert torch.equal(numbers.logits(resumed.module), numbers.logits(loaded.module))


def test_a_bfloat16_base_starts_from_its_rounded_weights(llama_folder, load, numbers, tmp_path) -> None:
    loaded = load(llama_folder, dtype=torch.bfloat16)
    strategy = prepared(loaded)
    layer = loaded.module.model.layers[0].self_attn.q_proj
    s = torch.linalg.svdvals(layer.weight.float())
    torch.testing.assert_close(torch.linalg.svdvals(layer.lora_scale * layer.lora_b @ layer.lora_a)[:4], s[:4])
    folder = saved(strategy, loaded, tmp_path / "adapter")
    assert {tensor.dtype for tensor in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}


@pytest.mark.slow
def test_a_compiled_model_computes_the_same() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 9), Conv1D(8, 9))
    prepared(LoadedModel(module, None, "memory", "causal-lm"), dora=True)
    for layer in module:
        nn.init.normal_(layer.lora_b)
    x = torch.randn(7, 12)
    results = []
    for run in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
        module.zero_grad()
        y = run(x)
        y.square().sum().backward()
        results.append([y, *(parameter.grad for parameter in trainable(module).values())])
    torch.testing.assert_close(*results)


def test_an_adapter_saved_with_another_start_is_refused(llama_folder, load, tmp_path) -> None:
    loaded, other = load(llama_folder), load(llama_folder)
    folder = saved(prepared(loaded, init="kaiming"), loaded, tmp_path / "adapter")
    with raises(BaseMismatch, "rank 4", "rank 8"):
        prepared(other).load(other, folder)


def test_training_continues_from_a_pissa_adapter_as_from_any_other(llama_folder, load, numbers, tmp_path) -> None:
    loaded, again = load(llama_folder), load(llama_folder)
    strategy = prepared(loaded)
    trained(strategy, loaded, numbers)
    folder = saved(strategy, loaded, tmp_path / "adapter")
    continued = LoRA(LoRAConfig(start_from=str(folder)))
    continued.prepare(again)
    assert continued.config.rank == 8
    assert torch.equal(numbers.logits(again.module), numbers.logits(loaded.module))
    with raises(RecipeError, "strategy.init", "pissa"):
        LoRAConfig(start_from=str(folder), init="pissa")
