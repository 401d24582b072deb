"""bitsandbytes and torchao, imported without their notes.

They tell of kernels that this machine cannot load, and bitsandbytes of every cast to float16, step by step.
"""

import logging

for part in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions", "torchao"):
    logging.getLogger(part).setLevel(logging.ERROR)

import bitsandbytes  # noqa: E402
import torchao.quantization  # noqa: E402

__all__ = ["bitsandbytes", "torchao"]
