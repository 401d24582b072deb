"""Attention over rows that may begin alike, and what stands around it: ftengine's kernels against PyTorch's operations.

Forward and backward with the heads of SmolLM2-135M (9 of queries, 3 of keys, 64 deep), in turn in one process; seconds
of the processor, the least of several repetitions, so that other programs count as little as may be. PyTorch computes
padded rows by scaled_dot_product_attention, causal, with grouped keys as they are.

    python benchmarks/attention.py --json benchmarks/results/DEVICE/attention.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from ftengine.ops.attention import attention
from ftengine.ops.elementwise import rotate, silu_mul
from ftengine.run.environment import hardware, versions
from ftengine_builtins.fast_paths.shared_prefix.tree import PrefixTree

HEADS, KEY_HEADS, DEPTH, WIDE = 9, 3, 64, 1536
CASES: dict[str, tuple[int, list[int]]] = {
    "8 x 47, of which 24 are shared": (24, [23] * 8),
    "8 x 80": (0, [80] * 8),
    "8 x 128": (0, [128] * 8),
    "4 x 512": (0, [512] * 4),
    "1 x 2048": (0, [2048]),
    "1 x 8192": (0, [8192]),
    "8 x 220, of which 200 are shared": (200, [20] * 8),
    "8 x 1020, of which 1000 are shared": (1000, [20] * 8),
}
"""Of each case how many tokens its rows share, and how many each has of its own."""


def both(shared: int, own: list[int], dtype: torch.dtype) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what computes rows by our kernel, and by PyTorch's, forward and backward."""
    draw = np.random.default_rng(0)
    start = draw.integers(1000, size=shared)
    rows = [np.concatenate([start, draw.integers(1000, size=size)]) for size in own]
    tree, longest = PrefixTree.of(rows), max(map(len, rows))
    sequences, heads = tree.sequences(tree.tokens, tree.tokens, None), (HEADS, KEY_HEADS, KEY_HEADS)
    ours = [torch.randn(tree.tokens, n, DEPTH, dtype=dtype).requires_grad_() for n in heads]
    theirs = [torch.randn(len(rows), n, longest, DEPTH, dtype=dtype).requires_grad_() for n in heads]
    slopes = torch.randn(tree.tokens, HEADS, DEPTH, dtype=dtype), torch.randn(theirs[0].shape, dtype=dtype)

    def padded() -> Any:
        y = scaled_dot_product_attention(*theirs, is_causal=True, enable_gqa=True)
        return torch.autograd.grad(y, theirs, slopes[1])

    return lambda: torch.autograd.grad(attention(*ours, sequences, DEPTH**-0.5), ours, slopes[0]), padded


def beside(tokens: int, dtype: torch.dtype) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return the same of a gate and of a rotary embedding."""
    gate, up = (torch.randn(1, tokens, WIDE, dtype=dtype).requires_grad_() for _ in range(2))
    x = torch.randn(1, tokens, HEADS, DEPTH, dtype=dtype).transpose(1, 2).requires_grad_()
    cos, sin = (torch.randn(1, tokens, DEPTH, dtype=dtype) for _ in range(2))

    def turned(x: Tensor) -> Tensor:
        first, second = x[..., : DEPTH // 2], x[..., DEPTH // 2 :]
        return x * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]

    def passed(function: Callable[..., Tensor], *operands: Tensor) -> Callable[[], Any]:
        slope = torch.randn(operands[0].shape, dtype=dtype)
        return lambda: torch.autograd.grad(function(*operands), operands, slope)

    return {
        f"silu(gate) * up, {tokens} x {WIDE}": (passed(silu_mul, gate, up), passed(lambda g, u: silu(g) * u, gate, up)),
        f"rotary embedding, {tokens} x {HEADS} x {DEPTH}": (
            passed(lambda x: rotate(x, cos, sin), x),
            passed(turned, x),
        ),
    }


def compared(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return the least seconds of each."""
    times: tuple[list[float], list[float]] = [], []
    for _ in range(repeats + 1):
        for call, taken in zip((ours, theirs), times, strict=True):
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
    return min(times[0][1:]), min(times[1][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="of which the least counts (default: 9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    arguments = parser.parse_args()
    figures = []
    print(f"{'forward and backward':36} {'dtype':9} {'ftengine ms':>12} {'PyTorch ms':>11} {'ratio':>6}")
    for dtype in (torch.float32, torch.bfloat16):
        pairs = {name: both(*case, dtype) for name, case in CASES.items()} | beside(208, dtype) | beside(1024, dtype)
        for name, pair in pairs.items():
            ours, theirs = compared(*pair, arguments.repeats)
            kind = str(dtype).removeprefix("torch.")
            print(f"{name:36} {kind:9} {1e3 * ours:12.2f} {1e3 * theirs:11.2f} {theirs / ours:6.2f}", flush=True)
            figures.append({"case": name, "dtype": kind, "ftengine_s": ours, "torch_s": theirs})
    if arguments.json:
        content = {"hardware": hardware(), "versions": versions(), "figures": figures}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
