"""Experts with low-rank updates compute what a loop over tokens and experts computes, with the same gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from expected import raises
from torch import Tensor
from torch.nn.functional import silu

from ftengine.equivalence import distance
from ftengine.ops import ExpertMap, lowrank_experts, use_reference

EXPERTS, INPUTS, INNER, RANK, TOKENS = 5, 12, 7, 3, 9


def gate(hidden: Tensor) -> Tensor:
    left, right = hidden.chunk(2, dim=-1)
    return silu(left) * right


def loop(x: Tensor, chosen: Tensor, shares: Tensor, up: ExpertMap, down: ExpertMap) -> Tensor:
    """What the operation means, token by token."""

    def apply(part: ExpertMap, expert: int, z: Tensor) -> Tensor:
        y = part.weight[expert] @ z + (0 if part.bias is None else part.bias[expert])
        if part.a is None:
            return y
        a = part.a if part.a.dim() == 2 else part.a[expert]
        return y + part.scale * part.b[expert] @ (a @ z)

    def token(z: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        ys = [apply(down, e, gate(apply(up, e, z))) for e in experts.tolist()]
        return sum(w * y for w, y in zip(weights, ys, strict=True))

    return torch.stack([token(*one) for one in zip(x, chosen, shares, strict=True)])


def drawn(n_out: int, n_in: int, dtype: torch.dtype, *, bias=False, one_a=False, transposed=False, plain=False):
    new = partial(torch.randn, dtype=dtype)
    weight = new(EXPERTS, n_in, n_out).transpose(1, 2) if transposed else new(EXPERTS, n_out, n_in)
    a = new(*(() if one_a else (EXPERTS,)), RANK, n_in).requires_grad_()
    factors = (None, None) if plain else (a, new(EXPERTS, n_out, RANK).requires_grad_())
    return ExpertMap(weight, new(EXPERTS, n_out) if bias else None, *factors, 1.7)


def routed(kind: str) -> Tensor:
    if kind == "one token":
        return torch.tensor([[3, 1]])
    if kind == "all on one":
        return torch.full((TOKENS, 1), 2)
    return torch.stack([torch.randperm(EXPERTS - 1)[:2] for _ in range(TOKENS)])  # the last expert is not used


def both(x, chosen, shares, up, down):
    """Return results and gradients of the operation and of the loop, with where the experts' gradients are zero."""
    wanted = [x, shares, *(t for part in (up, down) for t in (part.a, part.b) if t is not None)]
    results = []
    for y in (lowrank_experts(x, chosen, shares, up, down, gate), loop(x, chosen, shares, up, down)):
        results.append([y, *torch.autograd.grad(y, wanted, torch.ones_like(y).cumsum(1))])
    return results


OPTIONS = [{}, {"bias": True}, {"one_a": True}, {"transposed": True, "bias": True}, {"plain": True, "bias": True}]


@pytest.mark.parametrize("kind", ["some", "one token", "all on one"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_results_and_gradients_equal_a_loop(kind, options, dtype) -> None:
    torch.manual_seed(0)
    chosen = routed(kind)
    x = torch.randn(len(chosen), INPUTS, dtype=dtype, requires_grad=True)
    shares = torch.rand(*chosen.shape, dtype=dtype, requires_grad=True)
    up = drawn(2 * INNER, INPUTS, dtype, **options)
    down = drawn(INPUTS, INNER, dtype, **options | {"plain": False})
    ours, exact = both(x, chosen, shares, up, down)
    for one, other in zip(ours, exact, strict=True):
        assert distance(one, other) < 64 * torch.finfo(dtype).eps
    unused = sorted({*range(EXPERTS)} - {*chosen.flatten().tolist()})
    assert unused
    assert not ours[-1][unused].any()


def test_nothing_of_all_tokens_by_all_experts_is_kept() -> None:
    kept, sizes = torch.randn(TOKENS, INPUTS, requires_grad=True), []
    up, down, chosen = drawn(2 * INNER, INPUTS, kept.dtype), drawn(INPUTS, INNER, kept.dtype), routed("some")
    parameters = {t.data_ptr() for part in (up, down) for t in part[:4] if t is not None}

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(0 if tensor.data_ptr() in parameters else tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lowrank_experts(kept, chosen, torch.rand(TOKENS, 2), up, down, gate)
    rows = chosen.numel()
    assert sum(sizes) <= kept.numel() + 2 * rows + rows * (2 * INNER + 2 * RANK)


def test_dropout_is_of_the_updates_alone_and_follows_the_seed() -> None:
    torch.manual_seed(0)
    x, chosen, shares = torch.randn(TOKENS, INPUTS), routed("some"), torch.rand(TOKENS, 2)
    up, down = drawn(2 * INNER, INPUTS, x.dtype), drawn(INPUTS, INNER, x.dtype)
    run = partial(lowrank_experts, x, chosen, shares, gate=gate, p=0.5)
    one, again, other = (run(up, down, seed=torch.tensor(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    plain = [part._replace(a=None, b=None) for part in (up, down)]
    assert torch.equal(run(*plain, seed=torch.tensor(1)), run(*plain, seed=torch.tensor(2)))
    with use_reference():
        assert distance(run(up, down, seed=torch.tensor(1)), one) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("plain", [{}, {"one_a": True}], ids=str)
def test_gradients_under_dropout_are_those_of_finite_differences(plain) -> None:
    torch.manual_seed(0)
    chosen, seed = routed("some"), torch.tensor(4)
    new = partial(torch.randn, dtype=torch.float64)
    up, down = drawn(2 * INNER, INPUTS, torch.float64, **plain), drawn(INPUTS, INNER, torch.float64, bias=True)

    def run(x, shares, *factors):
        maps = up._replace(a=factors[0], b=factors[1]), down._replace(a=factors[2], b=factors[3])
        return lowrank_experts(x, chosen, shares, *maps, gate, 0.3, seed)

    x, shares = new(TOKENS, INPUTS).requires_grad_(), torch.rand(TOKENS, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, shares, up.a, up.b, down.a, down.b))


def test_what_dropout_takes_of_a_token_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    x, chosen, shares = torch.randn(TOKENS, INPUTS), routed("some"), torch.rand(TOKENS, 2)
    up, down = drawn(2 * INNER, INPUTS, x.dtype), drawn(INPUTS, INNER, x.dtype)
    run = partial(lowrank_experts, x, shares=shares, up=up, down=down, gate=gate, p=0.5, seed=torch.tensor(1))
    other = torch.cat([chosen[:-1] * 0 + torch.tensor([0, 3]), chosen[-1:]])
    assert distance(run(other)[-1], run(chosen)[-1]) < 1e-6


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_in_bfloat16_and_under_autocast_it_stays_near(weights) -> None:
    torch.manual_seed(0)
    x, chosen, shares = torch.randn(TOKENS, INPUTS), routed("some"), torch.rand(TOKENS, 2)
    up, down = drawn(2 * INNER, INPUTS, x.dtype), drawn(INPUTS, INNER, x.dtype)
    exact = lowrank_experts(x, chosen, shares, up, down, gate)
    near = [part._replace(weight=part.weight.to(weights)) for part in (up, down)]
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        y = lowrank_experts(x.to(weights), chosen, shares, *near, gate)
    assert y.dtype == weights
    assert (y.float() - exact).norm() < 0.03 * exact.norm()
    y.sum().backward()
    assert up.a.grad.dtype == torch.float32


def test_no_tokens_are_no_error() -> None:
    up, down = drawn(2 * INNER, INPUTS, torch.float32), drawn(INPUTS, INNER, torch.float32)
    x, chosen = torch.zeros(0, INPUTS, requires_grad=True), torch.zeros(0, 2, dtype=torch.long)
    y = lowrank_experts(x, chosen, torch.zeros(0, 2), up, down, gate)
    y.sum().backward()
    assert y.shape == (0, INPUTS)
    assert not up.a.grad.any()


def test_wrong_shapes_and_trained_weights_are_refused() -> None:
    up, down = drawn(2 * INNER, INPUTS, torch.float32), drawn(INPUTS, INNER, torch.float32)
    x, chosen, shares = torch.randn(TOKENS, INPUTS), routed("some"), torch.rand(TOKENS, 2)
    with raises(ValueError, "up", str(INPUTS + 1)):
        lowrank_experts(torch.randn(TOKENS, INPUTS + 1), chosen, shares, up, down, gate)
    with raises(ValueError, "down", str(RANK)):
        lowrank_experts(x, chosen, shares, up, down._replace(b=down.b[:, :-1]), gate)
    with raises(ValueError, str(TOKENS), str(TOKENS - 1)):
        lowrank_experts(x, chosen[1:], shares, up, down, gate)
    with raises(ValueError, "gradient"):
        lowrank_experts(x, chosen, shares, up._replace(weight=up.weight.requires_grad_()), down, gate)
