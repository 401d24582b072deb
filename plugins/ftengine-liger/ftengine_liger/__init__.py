"""Liger's Triton kernels, for whatever model computes what they compute."""

from __future__ import annotations

from ftengine import api, hookimpl


@hookimpl
def ftengine_regularizers() -> list[type[api.Regularizer]]:
    from ftengine_liger.regularizer import Liger

    return [Liger]
