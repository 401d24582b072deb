"""Base models in 4 and 8 bits by bitsandbytes and torchao, and AdamW with 8-bit state."""

from __future__ import annotations

import logging

from ftengine import api, hookimpl

# When it is imported, it tells of a kernel that is not there; nobody asked for that.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@hookimpl
def ftengine_model_loaders() -> list[type[api.ModelLoader]]:
    from ftengine_quant.loaders import BitsAndBytesLoader, TorchaoLoader

    return [BitsAndBytesLoader, TorchaoLoader]


@hookimpl
def ftengine_optimizers() -> list[type[api.Optimizer]]:
    from ftengine_quant.optimizers import AdamW8bit

    return [AdamW8bit]
