"""LoRA and DoRA on every kind of layer compute what PEFT computes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from expected import raises
from lora_models import PackedLinear
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding
from transformers.pytorch_utils import Conv1D

from ftengine.api import LoadedModel
from ftengine.errors import NoMatch, RecipeError
from ftengine.model import trainable
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig

KINDS = {
    "linear": lambda: nn.Linear(6, 5),
    "linear without bias": lambda: nn.Linear(6, 5, bias=False),
    "conv1d": lambda: Conv1D(5, 6),
    "conv2d": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "conv2d of 1x1": lambda: nn.Conv2d(3, 4, 1, bias=False),
    "conv2d of 3x2": lambda: nn.Conv2d(3, 4, (3, 2), padding=(1, 0)),
    "embedding": lambda: nn.Embedding(9, 5, padding_idx=0),
    "scaled embedding": lambda: BartScaledWordEmbedding(9, 5, 0, embed_scale=3.0),
}


@pytest.fixture(params=KINDS)
def base(request) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(KINDS[request.param]())


def inputs(base: nn.Sequential, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(1)
    if isinstance(base[0], nn.Embedding):
        return torch.randint(0, 9, (3, 4))
    return torch.randn((2, 3, 8, 8) if isinstance(base[0], nn.Conv2d) else (7, 6), dtype=dtype)


def tuned(base: nn.Sequential, **options) -> tuple[LoRA, LoadedModel]:
    """Return a copy of the base with LoRA, every trainable tensor away from its start."""
    torch.manual_seed(2)
    loaded = LoadedModel(copy.deepcopy(base), None, "memory", "causal-lm")
    strategy = LoRA(LoRAConfig(**{"rank": 4, "alpha": 6, "targets": ["0"], "dropout": 0.0, **options}))
    strategy.prepare(loaded)
    with torch.no_grad():
        for parameter in trainable(loaded.module).values():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return strategy, loaded


def as_peft(base: nn.Sequential, ours: nn.Module, **options) -> nn.Module:
    """Wrap a copy of the base with PEFT, holding the same A, B and magnitude."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on fan_in_fan_out, which it corrects
        wrapped = get_peft_model(copy.deepcopy(base), PeftConfig(r=4, lora_alpha=6, target_modules=["0"], **options))
    own = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in trainable(wrapped).items():
            parameter.copy_(own[own_name(name)])
    return wrapped


def own_name(peft_name: str) -> str:
    kind = next(k for k in ("A", "B", "magnitude") if f"_{k}" in peft_name)
    return f"0.lora_{kind.lower()}"


@pytest.mark.parametrize(("dora", "dropout"), [(False, 0.0), (True, 0.0), (True, 0.4)])
def test_outputs_and_gradients_equal_pefts(base, dora: bool, dropout: float) -> None:
    assert_equals_peft(base, dora, dropout)


@pytest.mark.parametrize("kind", ["conv2d", "embedding"])  # tests/ops holds linear layers' own masks to their share
def test_dropout_falls_where_it_falls_in_peft(kind: str) -> None:
    torch.manual_seed(0)
    assert_equals_peft(nn.Sequential(KINDS[kind]()), False, 0.4)


def assert_equals_peft(base: nn.Sequential, dora: bool, dropout: float) -> None:
    base = base.double()
    _, loaded = tuned(base, dora=dora, dropout=dropout)
    ours = loaded.module.double()
    peft = as_peft(base, ours, use_dora=dora, lora_dropout=dropout).double()
    results = []
    for module in (ours, peft):
        x = inputs(base, torch.float64)
        if x.is_floating_point():
            x.requires_grad_()
        torch.manual_seed(3)
        y = module.train()(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        gradients = {own_name(n) if "base_model" in n else n: p.grad for n, p in trainable(module).items()}
        results.append([y, *(gradients[name] for name in sorted(gradients)), *([x.grad] if x.requires_grad else [])])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_merging_keeps_the_outputs(base, dora: bool) -> None:
    base = base.double()
    strategy, loaded = tuned(base, dora=dora)
    module = loaded.module.double().eval()
    before = module(inputs(base, torch.float64))
    assert not torch.allclose(before, base(inputs(base, torch.float64)))
    strategy.merge(loaded)
    assert type(module[0]) is type(base[0])
    assert module.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(module(inputs(base, torch.float64)), before)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_bfloat16_under_autocast_stays_near_float32(base, dora: bool) -> None:
    _, loaded = tuned(base, dora=dora)
    exact = loaded.module(inputs(base))
    half = copy.deepcopy(loaded.module)
    half[0].weight.data = half[0].weight.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = half(inputs(base))
        y.float().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in trainable(half).values())
    # Five roundings at most (x, W, A, B, a sum) of half a unit each, on outputs of this size.
    assert (y - exact).norm() <= 2.5 * torch.finfo(torch.bfloat16).eps * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_compiled_layer_computes_the_same(base, dora: bool) -> None:
    torch.compiler.reset()  # dynamo stops after so many kinds of layer at one place
    _, loaded = tuned(base, dora=dora)
    results = []
    for run in (loaded.module, torch.compile(loaded.module, backend="aot_eager", fullgraph=True)):
        loaded.module.zero_grad()
        y = run(inputs(base))
        y.square().sum().backward()
        results.append([y, *(p.grad.clone() for p in trainable(loaded.module).values())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("options", [{"padding": "same", "stride": 1}, {"padding": 2, "stride": (1, 2)}])
def test_a_convolution_keeps_its_geometry(options: dict, dora: bool) -> None:
    """The merged weight in a plain convolution is what has to come out."""
    base = nn.Sequential(nn.Conv2d(3, 4, 3, **options)).double()
    _, loaded = tuned(base, dora=dora)
    layer = loaded.module.double()[0]
    weight = layer.weight + 6 / 4 * torch.einsum("or,rihw->oihw", layer.lora_b.flatten(1), layer.lora_a)
    if dora:
        weight = weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * layer.lora_magnitude.view(-1, 1, 1, 1)
    x = inputs(base, torch.float64)
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, layer.bias, layer.stride, layer.padding))


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "2 groups"),
        (nn.Conv2d(4, 4, 3, padding_mode="circular"), "circular"),
        # PEFT's A has no dilation: it would compute another update from the same file.
        (nn.Conv2d(4, 4, 3, padding="same", dilation=(1, 2)), "(1, 2)"),
        (nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
        (OPTLearnedPositionalEmbedding(4, 4), "OPTLearnedPositionalEmbedding"),
        (nn.Conv3d(4, 4, 3), "Conv3d"),
    ],
)
def test_what_lora_cannot_express_is_refused(layer: nn.Module, what: str) -> None:
    loaded = LoadedModel(nn.Sequential(layer), None, "memory", "causal-lm")
    with raises(NoMatch, what):
        LoRA(LoRAConfig(targets=["0"])).prepare(loaded)


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (PackedLinear(4, 4), {"dora": True}, "PackedLinear"),
        (nn.Conv2d(4, 4, 3), {"init": "pissa"}, "Conv2d"),
        (nn.Embedding(4, 4), {"init": "olora"}, "Embedding"),
        (nn.Linear(9, 5), {"init": "pissa"}, "rank_pattern"),
    ],
)
def test_options_that_a_layer_cannot_have_are_refused_before_anything_changes(layer, options, message: str) -> None:
    module = nn.Sequential(nn.Linear(9, 9), layer)
    with raises(RecipeError, message):
        LoRA(LoRAConfig(targets="[01]", **options)).prepare(LoadedModel(module, None, "memory", "causal-lm"))
    assert type(module[0]) is nn.Linear
    assert module[0].weight.requires_grad
