"""Products of float32 matrices: a linear layer's three by torch's own way and by oneDNN, as ftengine takes it.

y = x Wᵀ, dx = dy W, dW = dyᵀ x, in turn in one process; seconds of the processor, the median of the repetitions.

    python benchmarks/products.py --json benchmarks/results/DEVICE/products.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from ftengine.ops.library import onednn_from
from ftengine.ops.products import products_by_onednn
from ftengine.run.environment import hardware, versions

SHAPES = ((64, 576, 576), (376, 576, 576), (376, 576, 1536), (376, 1536, 576), (128, 576, 49152), (512, 4096, 4096))
"""M tokens, K inputs, N outputs."""


def rows(repetitions: int) -> list[dict[str, float | str]]:
    """Measure every product of every shape, by turns."""
    found = list[dict[str, float | str]]()
    for m, k, n in SHAPES:
        x, w, dy = torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)
        for name, left, right in (("y", x, w.t()), ("dx", dy, w), ("dW", dy.t(), x)):
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(repetitions + 1):
                for by_onednn in (False, True):
                    with products_by_onednn() if by_onednn else torch.no_grad():
                        torch.mm(left, right)  # so that what the other way left in the caches counts for neither
                        begin = time.process_time()
                        torch.mm(left, right)
                        seconds[by_onednn].append(time.process_time() - begin)
            own, onednn = (statistics.median(one[1:]) for one in seconds)
            found.append({"m": m, "k": k, "n": n, "product": name, "torch_ms": own * 1e3, "onednn_ms": onednn * 1e3})
            rate = 2 * m * k * n / own / 1e9, 2 * m * k * n / onednn / 1e9
            print(
                f"{m} x {k} x {n}, {name}: {own * 1e3:.3g}, {onednn * 1e3:.3g} ms ({own / onednn:.2f} times); "
                f"{rate[0]:.0f}, {rate[1]:.0f} GFLOP/s",
                flush=True,
            )
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15, help="of each product (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    if onednn_from() is None:
        print("this processor's products stay torch's own: both columns are those")
    found = {"rows": rows(options.repetitions), "threads": torch.get_num_threads()}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**found, "hardware": hardware(), "versions": versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
