"""Show the answers of base and tuned model, as `ftengine predict` wrote them, under each prompt."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, metavar="BASE.jsonl")
    parser.add_argument("after", type=Path, metavar="TUNED.jsonl")
    arguments = parser.parse_args()

    files = [file.read_text(encoding="utf-8").splitlines() for file in (arguments.before, arguments.after)]
    for before, after in zip(*files, strict=True):
        rows = {"before": json.loads(before), "after": json.loads(after)}
        print(f"\n{rows['before']['messages'][-1]['content']}")
        for when, row in rows.items():
            print(f"  {when:>6}: {' '.join(row['prediction']['completion'].split())}")


if __name__ == "__main__":
    main()
