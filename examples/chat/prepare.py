"""Write chatterbot-corpus's English conversations as chat messages, one conversation a line."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml


def corpus_folder() -> Path:
    """Find the installed corpus without importing the package."""
    spec = find_spec("chatterbot_corpus")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "error: chatterbot-corpus is not installed; "
            "run `pip install --no-deps -r examples/requirements.txt`, or `make demo`."
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "english"


def messages(conversation: Any) -> list[dict[str, str]]:
    """Turn a list of turns into messages, or into none where there is no answer to learn from.

    Turns alternate between user and assistant. A last turn that nobody answers is dropped.
    """
    if not isinstance(conversation, list) or not all(isinstance(turn, str) and turn.strip() for turn in conversation):
        return []
    answered = conversation[: len(conversation) // 2 * 2]
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": turn.strip()} for index, turn in enumerate(answered)]


def pairs(conversations: list[list[dict[str, str]]]) -> list[str]:
    """Return a line a distinct last question: with its answer as chosen, and that of the next one as rejected."""
    asked = {turns[-2]["content"]: turns[-1]["content"] for turns in conversations}
    rows = list(asked.items())
    found = [
        {"prompt": question, "chosen": answer, "rejected": other}
        for (question, answer), (_, other) in zip(rows, rows[7:] + rows[:7], strict=True)
        if answer != other
    ]
    return [json.dumps(row, ensure_ascii=False) + "\n" for row in found]


def unpaired(pairs: list[str]) -> list[str]:
    """Return a line for each answer of pairs: a desirable one where it was chosen."""
    rows = map(json.loads, pairs)
    answers = [(row["prompt"], row[side], side == "chosen") for row in rows for side in ("chosen", "rejected")]
    found = [{"prompt": asked, "completion": answer, "label": label} for asked, answer, label in answers]
    return [json.dumps(row, ensure_ascii=False) + "\n" for row in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/data/chat/conversations.jsonl"), metavar="FILE")
    parser.add_argument("--pairs", action="store_true", help="write each question with its answer and another one's")
    parser.add_argument("--unpaired", action="store_true", help="write these answers one by one, as desirable or not")
    parser.add_argument("--distinct", action="store_true", help="write each conversation once (default: as shipped)")
    arguments = parser.parse_args()

    lines: list[str] = []
    seen: set[str] = set()
    unusable = 0
    for file in sorted(corpus_folder().glob("*.yml")):
        for conversation in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            turns = messages(conversation)
            content = json.dumps(turns)
            unusable += not turns
            if turns and not (arguments.distinct and content in seen):
                seen.add(content)
                lines.append(json.dumps({"messages": turns, "source": file.stem}, ensure_ascii=False) + "\n")
    if arguments.pairs or arguments.unpaired:
        lines = pairs([json.loads(line)["messages"] for line in lines])
    if arguments.unpaired:
        lines = unpaired(lines)

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.output.with_name(arguments.output.name + ".partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(arguments.output)
    print(
        f"{arguments.output}: {len(lines)} conversations, {len(seen)} distinct; {unusable} without an answer left out"
    )


if __name__ == "__main__":
    main()
