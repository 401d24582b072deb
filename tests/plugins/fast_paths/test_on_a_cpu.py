"""Fast paths on a CPU: norms, dropout, attention without repeated keys."""

import copy
from contextlib import contextmanager

import pytest
import torch
from expected import raises
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from ftengine.api import LoadedModel
from ftengine.errors import RecipeError
from ftengine.model.norms import gated_block_of
from ftengine.ops import active_backend
from ftengine.testing import training_context
from ftengine_builtins.fast_paths.dropout import CpuDropout
from ftengine_builtins.fast_paths.gates import CpuGates
from ftengine_builtins.fast_paths.grouped_keys import GroupedKeys
from ftengine_builtins.fast_paths.norms import CpuNorms
from ftengine_builtins.fast_paths.rotary import CpuRotary

compiled = pytest.mark.skipif(active_backend()[0] != "compiled", reason=active_backend()[1])


def active(path, *modules):
    """Have modules compute by a fast path; yields what it replaces."""
    module = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
    return path().activate(LoadedModel(module, None, "", None), training_context())


@contextmanager
def fast_dropout():
    with active(CpuDropout, nn.Dropout(0.1)) as calls:
        yield calls


class Outside(LlamaRMSNorm):
    """eps stands outside of the root."""

    def forward(self, x):
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)


class Picky(LlamaRMSNorm):
    def forward(self, x):
        assert x.dim() == 4
        return super().forward(x)


class Dropping(LlamaRMSNorm):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.1, self.training)


class Steps(nn.Module):
    """No norm, though a vector and a number are all it has."""

    def __init__(self, size):
        super().__init__()
        self.weight, self.size = nn.Parameter(torch.ones(size)), 0.5

    def forward(self, x, table):
        return table[x] * self.weight


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [LlamaRMSNorm, GemmaRMSNorm, T5LayerNorm, lambda size: nn.RMSNorm(size, eps=1e-5)])
def test_norms_are_known_by_what_they_compute(make, dtype):
    norm = make(24).to(dtype)
    nn.init.normal_(norm.weight)
    x, dy = torch.randn(2, 3, 24, requires_grad=True, dtype=dtype), torch.randn(2, 3, 24, dtype=dtype)
    before = [norm(x), *torch.autograd.grad(norm(x), (x, norm.weight), dy)]
    with active(CpuNorms, nn.Sequential(norm)) as found:
        assert found == {"RMS norms": 1}
        assert type(norm(x).grad_fn).__name__ == "_RMSNormBackward"
        after = [norm(x), *torch.autograd.grad(norm(x), (x, norm.weight), dy)]
        twin = copy.deepcopy(norm)
        assert twin.forward.__self__ is twin
    for own, plain in zip(after, before, strict=True):
        torch.testing.assert_close(own, plain, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)
    assert torch.equal(norm(x), before[0])
    assert "forward" not in vars(norm)


@compiled
@pytest.mark.parametrize("make", [Outside, Picky, Dropping, Steps, lambda n: nn.LayerNorm(n, bias=False), nn.PReLU])
def test_what_computes_something_else_is_left_alone(make):
    with active(CpuNorms, nn.Sequential(make(24))) as found:
        assert found is None


@compiled
def test_what_the_kernel_does_not_have_is_computed_as_before():
    norm = LlamaRMSNorm(16)
    with active(CpuNorms, nn.Sequential(norm)):
        assert norm(torch.randn(2, 16, dtype=torch.float64)).dtype == torch.float64
        x = torch.randn(2, 16, dtype=torch.bfloat16)  # a float32 weight, as a trained one is, makes it float32
        assert norm(x).dtype == torch.float32


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config)


@compiled
@pytest.mark.parametrize(
    ("path", "expected"),
    [(CpuGates, {"gated blocks": 2}), (CpuRotary, {"attention layers": 2})],
    ids=["gates", "rotary"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_and_rotations_are_those_of_the_model_and_only_meanwhile(model, path, expected, dtype):
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))

    def outputs(of):
        logits = of(input_ids=ids).logits
        return [logits.detach(), *torch.autograd.grad(logits.double().square().sum(), list(of.parameters()))]

    exact, own = outputs(copy.deepcopy(model).double()), copy.deepcopy(model).to(dtype)
    before = outputs(own)
    with active(path, own) as replaced:
        assert replaced == expected
        after = outputs(own)
        with torch.profiler.profile() as profile:
            own(input_ids=ids)
        names = {event.key for event in profile.key_averages()}
    assert names & {"ftengine::silu_mul", "ftengine::rotate"}
    for fast, plain, true in zip(after, before, exact, strict=True):
        assert float((fast - true).norm()) <= 1.5 * float((plain - true).norm()) + 1e-6 * float(true.norm())
    assert all(torch.equal(one, other) for one, other in zip(outputs(own), before, strict=True))


class Doubled(LlamaMLP):
    def forward(self, x):
        return 2 * super().forward(x)


@compiled
@pytest.mark.parametrize(
    "make", [Doubled, lambda config: LlamaMLP(LlamaConfig(hidden_act="gelu")), lambda _: nn.PReLU()]
)
def test_blocks_that_compute_something_else_are_left_alone(model, make):
    with active(CpuGates, nn.Sequential(make(model.config))) as replaced:
        assert replaced is None


def drop(x, p=0.25, train=True):
    torch.manual_seed(7)
    return nn.functional.dropout(x, p, train)


@compiled
def test_every_dropout_of_a_model_is_drawn_by_the_kernel_and_only_meanwhile():
    x = torch.randn(400, 500, requires_grad=True)
    before = drop(x)
    with fast_dropout():
        y = drop(x)
        assert type(y.grad_fn).__name__ == "_DropoutBackward"
        assert torch.equal(y, drop(x))
        kept = y != 0
        assert abs(float(kept.float().mean()) - 0.75) < 0.005
        torch.testing.assert_close(y[kept], x[kept] / 0.75)
        assert drop(x, train=False) is x
        assert torch.equal(drop(x, 0.0), x)
        assert not drop(x, 1.0).any()
        assert drop(x, 1e-9) is x  # no multiple of 1/65536
        assert drop(x.double()).dtype == torch.float64
        assert not drop(torch.empty(0)).numel()
        with raises(RuntimeError, "between 0 and 1"):
            torch.dropout(x, 1.5, True)
        with fast_dropout():
            assert torch.equal(y, drop(x))
        assert torch.equal(y, drop(x))
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient != 0, kept)
    assert torch.equal(drop(x), before)


@compiled
def test_rows_that_attend_to_nothing_are_zeros_and_broken_ones_stay_broken():
    scores = torch.randn(3, 4, 5)
    scores[0, 1], scores[1, 2, :4], scores[2, 0, 3] = -torch.inf, -torch.inf, torch.nan
    expected, x = torch._safe_softmax(scores, -1), scores.clone().requires_grad_()
    with fast_dropout():
        assert torch.equal(torch._safe_softmax(scores[:2], -1), expected[:2])
        torch.testing.assert_close(torch._safe_softmax(scores, -1), expected, equal_nan=True, rtol=0, atol=0)
        (gradient,) = torch.autograd.grad(torch._safe_softmax(x, -1)[:2].square().sum(), x)
        assert torch._safe_softmax(torch.empty(2, 0), -1).shape == (2, 0)
    assert not gradient[0, 1].any()


@pytest.mark.parametrize("path", [CpuNorms, CpuDropout, GroupedKeys])
def test_other_devices_are_refused(path):
    with pytest.raises(RecipeError, match="computes on cuda"):
        path().check_device(torch.device("cuda"))


def test_a_block_that_scales_what_is_between_is_no_gated_block():
    block = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=16))
    assert gated_block_of(block) is not None
    scaled = type("Scaled", (type(block),), {"forward": lambda self, x: 2 * type(block).forward(self, x)})
    scaled.__module__ = type(block).__module__
    block.__class__ = scaled
    assert gated_block_of(block) is None
