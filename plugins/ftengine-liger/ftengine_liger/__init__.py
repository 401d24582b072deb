"""Liger's Triton kernels, for whatever model computes what they compute."""

from __future__ import annotations

from ftengine import api, hookimpl


@hookimpl
def ftengine_fast_paths() -> list[type[api.FastPath]]:
    from ftengine_liger.fast_path import Liger

    return [Liger]
