"""bitsandbytes, imported without its notes on kernels that are not there, and on every cast to float16."""

import logging

for part in ("backends.cpu.ops", "autograd._functions"):
    logging.getLogger(f"bitsandbytes.{part}").setLevel(logging.ERROR)

import bitsandbytes  # noqa: E402

__all__ = ["bitsandbytes"]
