"""What is measured in bfloat16, all of it, on a machine whose processor computes it: `make bench-bf16`.

Training steps in both dtypes, shared prefixes in both, and whole runs against TRL in batches of 1, 8 and 32. A
measurement whose file is there is not made again, so that a run that was interrupted goes on.

    python benchmarks/bfloat16.py --results benchmarks/results/DEVICE
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch

from ftengine.parallel.precision import native_bfloat16
from ftengine.run.environment import hardware

HERE = Path(__file__).parent
DTYPES = ("float32", "bfloat16")
BATCHES = (1, 8, 32)
KINDS = {"steps": "step_profile.py", "shared_prefix": "shared_prefix.py", "peers": "train_vs_peers.py"}
"""What there is, and the script that measures it."""

QUICK = {
    "steps": ["--words", "15", "--rounds", "1"],
    "shared_prefix": ["--layers", "1", "--repeats", "1"],
    "peers": ["--steps", "2", "--rounds", "1", "--held-out", "4"],
}


def measurements(kind: str) -> dict[str, list[str]]:
    """Return the measurements of a kind: the file of each and what its script is told."""
    if kind == "steps":
        return {f"step_profile-{dtype}.json": ["--precision", dtype] for dtype in DTYPES}
    if kind == "shared_prefix":
        return {"shared_prefix.json": ["--dtypes", *DTYPES]}
    chat = ["chat", "--precision", "bf16", "--apart"]
    return {f"chat-bf16-batch-{batch}.json": [*chat, "--batch", str(batch)] for batch in BATCHES}


def device() -> str:
    """Return a name for the machine, as the folders in results/ have it."""
    found = hardware()
    name = f"{found['processor']} {found['cpu_capability']} {found['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main() -> None:
    """Measure what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, help="folder of the files (default: benchmarks/results/ and the machine)"
    )
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="what to measure (default: all)")
    parser.add_argument("--anyway", action="store_true", help="also on a processor without bfloat16")
    parser.add_argument("--quick", action="store_true", help="a step or two of each, to see that all of it runs")
    options = parser.parse_args()
    native, reason = native_bfloat16(torch.device("cpu"))
    if not native:
        print(f"{reason}: {'measured anyway' if options.anyway else 'nothing is measured; --anyway measures'}")
    if not native and not options.anyway:
        raise SystemExit(1)
    folder = options.results or HERE / "results" / device()
    for kind in options.only:
        for name, told in measurements(kind).items():
            if (folder / name).exists():
                print(f"{folder / name} is there")
                continue
            command = [sys.executable, str(HERE / KINDS[kind]), *told, "--json", str(folder / name)]
            print(*command[1:], flush=True)
            subprocess.run([*command, *(QUICK[kind] if options.quick else [])], check=True)


if __name__ == "__main__":
    main()
