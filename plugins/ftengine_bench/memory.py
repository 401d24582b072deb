"""Memory of a step: bytes saved for the backward pass, and the peak."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from ftengine_bench.layers import Step


def saved_bytes(step: Step) -> int:
    """Return the bytes that the forward pass saves for the backward pass, without tensors that exist anyway."""
    kept: dict[int, int] = {}
    given = {tensor.untyped_storage().data_ptr() for tensor in step.given}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.forward()
    total = sum(count for address, count in kept.items() if address not in given)
    step.clear()
    return total


def peak_bytes(step: Step, device: str) -> dict[str, int]:
    """Return, by phase, the peak bytes above those before the step."""
    watch = _watch_cuda if device == "cuda" else _watch_processor
    held, forward = watch(step.forward)
    backward = held + watch(step.backward)[1]
    step.clear()
    return {"forward": forward, "backward": backward, "both": max(forward, backward)}


def _watch_cuda(call: Callable[[], None]) -> tuple[int, int]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before


def _watch_processor(call: Callable[[], None]) -> tuple[int, int]:
    """Return (bytes held afterwards, most bytes held), as torch's allocator reports them to the profiler.

    What a library allocates past torch (MKL's buffers) is not seen.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler prints to stderr that it starts and stops
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return held, most
