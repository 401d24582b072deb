"""Saved and peak bytes of layers whose memory can be counted by hand."""

import pytest
import torch

from ftengine_bench.layers import Layer, Shape, Step, our_reference, ours
from ftengine_bench.memory import peak_bytes, saved_bytes

M, K, N, R = 64, 256, 128, 4


def layer(dtype=torch.float32, p=0.0):
    return Layer.make(Shape(M, K, N), R, dtype, p, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("provider", [ours, our_reference])
def test_ours_saves_s_and_the_seed(provider, dtype):
    assert saved_bytes(provider(layer(dtype))) == dtype.itemsize * M * R
    assert saved_bytes(provider(layer(dtype, p=0.25))) == dtype.itemsize * M * R + 8


def test_the_peak_counts_what_is_held_at_once():
    x = torch.ones(1000, requires_grad=True)

    def call():
        first = x * 2  # 4000 bytes, gone before the third
        second = first + 1  # 4000 bytes
        del first
        return second + 1  # 4000 bytes

    step = Step(call, (x,), torch.ones(1000), (x,))
    peaks = peak_bytes(step, "cpu")
    assert 8000 <= peaks["forward"] < 8200  # and a scalar or two
    assert 8000 <= peaks["backward"] < 8400  # y, and the gradient
    assert peaks["both"] == max(peaks["forward"], peaks["backward"])
