"""Time the data audit and its memory on made-up rows: `python benchmarks/audit.py --rows 1000000`.

Rows are 8 to 40 words from a vocabulary with the frequencies of natural text (Zipf 1949), with a label. Of them, 2 %
repeat an earlier row and 2 % nearly repeat one (a word in twenty is another). Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VOCABULARY = 50_000


def rows(count: int) -> Iterator[dict[str, str]]:
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, VOCABULARY + 1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(VOCABULARY)])
    cumulative = np.cumsum(frequency / frequency.sum())
    earlier: list[np.ndarray] = []
    for number in range(count):
        kind = rng.random()
        if kind < 0.04 and earlier:
            words = earlier[rng.integers(len(earlier))].copy()
            if kind < 0.02:
                at = rng.choice(len(words), max(1, len(words) // 20), replace=False)
                words[at] = rng.integers(VOCABULARY, size=len(at))
        else:
            words = np.searchsorted(cumulative, rng.random(rng.integers(8, 41))).clip(max=VOCABULARY - 1)
        if number < 10_000:
            earlier.append(words)
        yield {"text": " ".join(vocabulary[words]), "label": "ab"[int(words[0]) % 2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()

    from ftengine.data.audit import run_audits
    from ftengine.data.split import make_splits
    from ftengine.plugins.registry import Registry
    from ftengine.run.recipe import DataSection

    registry = Registry()
    task = registry.build("task", {"name": "text-classification"}, "task")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FTENGINE_CACHE"] = str(Path(folder, "cache"))
        file = Path(folder, "rows.jsonl")
        with file.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows(arguments.rows))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        splits = make_splits(DataSection(train=str(file), validation=0.1, test=0.1), task, 0)
        audit = run_audits(splits.audited(), {}, registry)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = {
            "rows": arguments.rows,
            "megabytes": round(file.stat().st_size / 1e6, 1),
            "seconds": round(seconds, 1),
            "rows_a_second": round(arguments.rows / seconds),
            "peak_mebibytes": round(peak / 1024),
            "before_mebibytes": round(before / 1024),
            "duplicates": sum(split.duplicates for split in audit.splits.values()),
            "near_duplicates": sum(split.near_duplicates for split in audit.splits.values()),
            "leaks": audit.facts["leaks"],
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
