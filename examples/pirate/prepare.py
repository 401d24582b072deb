"""Write the questions of chatterbot-corpus as prompts: train.jsonl, test.jsonl, and general.jsonl for forgetting.

python examples/pirate/prepare.py --output pirate
"""

from __future__ import annotations

import argparse
import json
import random
from importlib.util import find_spec
from pathlib import Path

import yaml

TEST, GENERAL = 60, 100


def questions() -> list[dict[str, str]]:
    """Return the distinct English questions with an answer each."""
    spec = find_spec("chatterbot_corpus")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("error: chatterbot-corpus is not installed; run `pip install -r examples/requirements.txt`.")
    rows = dict[str, str]()
    for file in sorted((Path(spec.submodule_search_locations[0]) / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            if isinstance(turns, list) and len(turns) > 1 and all(isinstance(turn, str) and turn for turn in turns):
                rows[turns[0].strip()] = turns[1].strip()
    return [{"prompt": prompt, "completion": answer} for prompt, answer in rows.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("pirate"), help="folder (default: pirate)")
    parser.add_argument("--train", type=int, default=320, help="prompts to train on (default: 320)")
    asked = parser.parse_args()
    rows = questions()
    random.Random(0).shuffle(rows)
    ends = TEST, TEST + GENERAL, TEST + GENERAL + asked.train
    parts = {"test": rows[: ends[0]], "general": rows[ends[0] : ends[1]], "train": rows[ends[1] : ends[2]]}
    asked.output.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        file = asked.output / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in part), encoding="utf-8")


if __name__ == "__main__":
    main()
