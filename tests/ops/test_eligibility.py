"""The predicate that says which layers may take a compiled kernel."""

import pytest
import torch
from expected import raises

from ftengine.ops import active_backend, eligibility, library, use_reference, why_reference


@pytest.mark.parametrize(
    ("device", "dtype", "rank", "layout", "reason"),
    [
        ("cpu", torch.float32, 8, torch.strided, None),
        ("cpu", torch.bfloat16, 256, torch.strided, None),
        ("cuda", torch.float16, 1, torch.strided, None),
        ("cpu", torch.float16, 8, torch.strided, "dtype torch.float16 on cpu"),
        ("cpu", torch.float64, 8, torch.strided, "dtype torch.float64"),
        ("cuda", torch.float32, 8, torch.strided, "dtype torch.float32 on cuda"),
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
    with raises(RuntimeError, "inside"):
        inside()
    assert why_reference("cpu", torch.float32, 8) is None


@pytest.mark.parametrize(
    ("capabilities", "driver", "reason"),
    [
        ([(9, 0)], 13, None),
        ([(8, 0), (12, 0)], 13, None),
        ([(7, 5)], 13, "GPU 0, some GPU, has compute capability 7.5: kernels need 8.0"),
        ([(9, 0), (7, 0)], 13, "GPU 1, some GPU, has compute capability 7.0"),
        ([(9, 0)], 12, "the NVIDIA driver is for CUDA 12 and the kernels were compiled by nvcc 13"),
    ],
)
def test_gpu_and_driver_are_asked_before_anything_is_launched(monkeypatch, capabilities, driver, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "some GPU")
    monkeypatch.setattr(eligibility, "driver_version", lambda: driver)
    monkeypatch.setattr(library, "cuda_version", lambda: 13)
    eligibility._why_no_gpu_serves.cache_clear()
    try:
        answer = why_reference("cuda", torch.bfloat16, 8)
        backend = active_backend("cuda")
    finally:
        eligibility._why_no_gpu_serves.cache_clear()
    assert answer is None if reason is None else answer.startswith(reason)
    assert reason is None or backend in (("reference", answer), ("reference", library.why_absent("cuda")))
