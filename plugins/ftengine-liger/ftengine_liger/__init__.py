"""Liger's Triton kernels as a fast path for any model with RMS norms or gated blocks."""

from __future__ import annotations

from ftengine import api, hookimpl


@hookimpl
def ftengine_fast_paths() -> list[type[api.FastPath]]:
    from ftengine_liger.fast_path import Liger

    return [Liger]
