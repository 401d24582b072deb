"""The predicate that says which layers may take a compiled kernel."""

import pytest
import torch

from ftengine.ops import use_reference, why_reference


@pytest.mark.parametrize(
    ("device", "dtype", "rank", "layout", "reason"),
    [
        ("cpu", torch.float32, 8, torch.strided, None),
        ("cpu", torch.bfloat16, 256, torch.strided, None),
        ("cuda", torch.float16, 1, torch.strided, None),
        ("cpu", torch.float16, 8, torch.strided, "dtype torch.float16 on cpu"),
        ("cpu", torch.float64, 8, torch.strided, "dtype torch.float64"),
        ("cuda", torch.float64, 8, torch.strided, "dtype torch.float64"),
        ("mps", torch.float32, 8, torch.strided, "device mps"),
        ("cpu", torch.float32, 257, torch.strided, "rank 257"),
        ("cpu", torch.float32, 8, torch.sparse_coo, "layout torch.sparse_coo"),
    ],
)
def test_predicate_gives_its_reason(device, dtype, rank, layout, reason):
    answer = why_reference(device, dtype, rank, layout)
    assert answer is None if reason is None else answer.startswith(reason)


def test_autocast_decides_the_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        assert why_reference("cpu", torch.float16, 8) is None
        assert why_reference("cpu", torch.float64, 8).startswith("dtype torch.float64")
    with torch.autocast("cpu", torch.float16):
        assert why_reference("cpu", torch.float32, 8).startswith("dtype torch.float16")


def test_reference_is_used_inside_its_block_and_no_longer():
    def inside():
        with use_reference():
            assert why_reference("cpu", torch.float32, 8) == "the reference is asked for"
            raise RuntimeError("inside")

    assert why_reference("cpu", torch.float32, 8) is None
    with pytest.raises(RuntimeError, match="inside"):
        inside()
    assert why_reference("cpu", torch.float32, 8) is None
