"""What it saves to compute once what rows begin with alike, and what it costs where they share nothing.

Forward and backward of a batch through a decoder with the layers of SmolLM2-135M (fewer of them) and frozen weights:
as padded rows and as a prefix tree, in turn in one process; seconds of the processor, the least of several
repetitions, so that other programs count as little as may be. A prefix tree is computed even where a run would not.

    python benchmarks/shared_prefix.py --json benchmarks/results/DEVICE/shared_prefix.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from ftengine.model import Criterion, TokenLoss
from ftengine.model.tokens import IGNORED
from ftengine.run.environment import hardware, versions
from ftengine_builtins.fast_paths.shared_prefix import sharing

VOCABULARY = 4096
CASES: dict[str, tuple[int, list[int]]] = {
    "a chat's system prompt": (24, [37] * 8),
    "the same, rows of other lengths": (24, [20, 25, 30, 37, 40, 45, 50, 60]),
    "the same, 32 rows": (24, [37] * 32),
    "an instruction of 200 tokens": (200, [40] * 8),
    "examples of 1,000 tokens": (1000, [50] * 8),
    "answers of 5 tokens": (60, [5] * 8),
    "nearly nothing": (10, [100] * 8),
    "nothing": (0, [60] * 8),
    "nothing, long rows": (0, [512] * 4),
    "nothing, rows of other lengths": (0, [300, 350, 420, 512]),
}
"""Of each case how many tokens its rows share, and how many each has of its own."""


def decoder(layers: int, dtype: torch.dtype) -> nn.Module:
    """Return a decoder whose layers are those of SmolLM2-135M; what is in front of them takes a gradient."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=4096,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).requires_grad_(False)
    model.model.embed_tokens.weight.requires_grad_(True)
    return model


def batch_of(shared: int, own: list[int]) -> dict[str, Tensor]:
    """Return random rows that begin with the same tokens."""
    start = torch.randint(VOCABULARY, (shared,))
    rows = [torch.cat([start, torch.randint(VOCABULARY, (size,))]) for size in own]
    kept = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence(kept, batch_first=True),
    }


def seconds(model: nn.Module, batch: dict[str, Tensor]) -> float:
    """Return the processor's seconds for one forward and backward pass."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    began = time.process_time()
    TokenLoss().sum(model, batch, labels, Criterion())[0].backward()
    model.zero_grad()
    return time.process_time() - began


def measured(model: nn.Module, shared: int, own: list[int], repeats: int) -> dict[str, Any]:
    """Return tokens and seconds of a batch in both ways."""
    batch = batch_of(shared, own)
    rows, shared = list[float](), list[float]()
    with mock.patch.object(sharing, "WORTH", 2.0):
        computed = sharing.prefix_tree_of(batch)
        for _ in range(repeats + 1):  # the first warms caches
            rows.append(seconds(model, batch))
            with sharing.sharing_prefixes(model):
                shared.append(seconds(model, batch))
    one, other = min(rows[1:]), min(shared[1:])
    tokens = batch["input_ids"].numel(), 0 if computed is None else computed[0].tokens
    return {"padded": tokens[0], "computed": tokens[1], "rows_s": one, "shared_s": other, "ratio": one / other}


def main() -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    print(f"{'rows share':34}{'dtype':10}{'padded':>8}{'computed':>10}{'rows s':>9}{'shared s':>10}{'ratio':>8}")
    for dtype in options.dtypes:
        model = decoder(options.layers, getattr(torch, dtype))
        for name, (shared, own) in CASES.items():
            row = {"case": name, "dtype": dtype, **measured(model, shared, own, options.repeats)}
            found.append(row)
            times = f"{row['rows_s']:9.3f}{row['shared_s']:10.3f}{row['ratio']:8.2f}"
            print(f"{name:34}{dtype:10}{row['padded']:8,}{row['computed']:10,}{times}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"layers": options.layers, "hardware": hardware(), "versions": versions(), "cases": found}
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
