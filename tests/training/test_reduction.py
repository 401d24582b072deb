"""Gradients of several processes are added up in buckets that are sent while the backward pass goes on."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import together
from torch import nn
from torch.utils.checkpoint import checkpoint

from ftengine.errors import TrainingError
from ftengine.parallel.reduction import Reduction, buckets_of

WIDTH = 4
BUCKET = 2 * WIDTH * WIDTH * 4
"""Two of the weights below."""


def net():
    """Return four layers, the last of which in float64."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
    layers[3].double()
    return layers


def loss(layers, x, used):
    for place in used:
        x = layers[place](x.to(layers[place].weight.dtype))
    return x.square().sum()


def rows(rank, part):
    torch.manual_seed(10 * rank + part)
    return torch.randn(3, WIDTH)


SHARES = {"whole": [[(0, 1, 2, 3)], [(0, 1, 2, 3)]], "unused": [[(0, 1, 2), (0, 1)], [(0, 2)]], "empty": [[(0, 1)], []]}
"""By name, for each rank and each of its micro-batches, the layers that it uses; 3 is often used by none."""


def child(out):
    """Add up the gradients of each share; note how many calls were made, and how many before the backward's end."""
    dist.init_process_group("gloo")
    rank, sent, found = dist.get_rank(), [], {}
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda tensor, **options: sent.append(tensor.numel()) or all_reduce(tensor, **options)
    for name, shares in SHARES.items():
        layers = net()
        gradients, counts = Reduction(list(layers.parameters()), BUCKET), []
        for part, used in enumerate(shares[rank]):
            last = part == len(shares[rank]) - 1
            if last:
                counts.append(len(sent))
                with gradients.overlapping():
                    loss(layers, rows(rank, part), used).backward()
            else:
                loss(layers, rows(rank, part), used).backward()
        counts.append(len(sent))
        gradients.send()
        gradients.wait()
        counts.append(len(sent))
        found[name] = {"counts": counts, "grads": [p.grad.tolist() for p in layers.parameters()]}
        sent.clear()
    Path(out, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.slow
def test_sums_equal_one_process_and_no_process_waits_for_what_another_does_not_use(tmp_path):
    together(tmp_path, child, str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for name, shares in SHARES.items():
        layers = net()
        for rank, micro_batches in enumerate(shares):
            for part, used in enumerate(micro_batches):
                loss(layers, rows(rank, part), used).backward()
        assert first[name]["grads"] == second[name]["grads"]
        for parameter, grad in zip(layers.parameters(), first[name]["grads"], strict=True):
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(torch.tensor(grad, dtype=parameter.dtype), expected)
    # Layer 3 is alone in its dtype, 2 and 1 fill a bucket, 0 has the last one: all are sent within the backward pass.
    assert first["whole"]["counts"] == [0, 3, 3]
    assert first["unused"]["counts"] == [0, 0, 3]  # nobody's 3 is waited for until the end
    assert second["empty"]["counts"] == [0, 3]


def test_buckets_hold_one_dtype_each_from_the_last_parameter_on():
    first, second, third, other = net().parameters()
    assert [[id(p) for p in bucket] for bucket in buckets_of([first, second, third, other], BUCKET)] == [
        [id(other)],
        [id(third), id(second)],
        [id(first)],
    ]
    assert [len(bucket) for bucket in buckets_of([first, second], 1)] == [1, 1]


def test_a_gradient_that_comes_after_its_bucket_is_an_error(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **_: object())
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    x = torch.ones(1, WIDTH, requires_grad=True)
    y = checkpoint(layer, checkpoint(layer, x, use_reentrant=True), use_reentrant=True)
    raised = None
    with Reduction([layer.weight]).overlapping():
        try:
            y.sum().backward()
        except TrainingError as error:
            raised = error
    assert "in two parts of one backward pass" in str(raised)
    assert not layer.weight._post_accumulate_grad_hooks
