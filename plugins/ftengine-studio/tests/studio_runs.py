"""Folders that look like finished runs, without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ftengine.errors import DataError

HOSTILE = (
    "<script>document.title = 'owned'</script></textarea>"
    "<img src=x onerror=\"document.title='owned'\">\x1b[31m\u202edesrever"
)
"""An answer that is to stay text: markup, a terminal's escape, and a mark that turns the direction of writing."""


def write_run(folder: Path, count: int = 40, answers: Sequence[str] = (), *, longer: str = "tuned") -> Path:
    """Write a run with `count` answered prompts.

    Args:
        answers: of the tuned model, the first; the others have a text of their own.
        longer: whose answers are longer.
    """
    (folder / "predictions").mkdir(parents=True)
    (folder / "adapter").mkdir()
    recipe = {"model": {"source": "base"}, "task": "causal-lm", "data": {"train": "rows.jsonl"}, "strategy": "lora"}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "adapter" / "ftengine.json").write_text("{}")
    (folder / "evaluation.json").write_text(json.dumps({"base": {}, "tuned": {}, "difference": {}}))
    for side in ("base", "tuned"):
        texts = [f"{side[0]} answer {i}" + " and more" * (side == longer) for i in range(count)]
        if side == "tuned":
            texts[: len(answers)] = answers
        table = {
            "row": list(range(count)),
            "place": [f"rows.jsonl:{i + 1}" for i in range(count)],
            "group": list(range(count)),
            "slice.desk": ["a" if i % 2 else "b" for i in range(count)],
            "prompt": [f"question {i}" for i in range(count)],
            "completion": texts,
            "reference": [f"wanted {i}" for i in range(count)],
            "answered": [True] * count,
        }
        pq.write_table(pa.table(table), folder / "predictions" / f"test-{side}.parquet")
    steps = [{"step": i + 1, "loss": 2 / (i + 1), "learning_rate": 0.001, "grad_norm": 1.0} for i in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


class Echo:
    """A chat whose models answer with their side and how many turns they were given."""

    def __init__(self, run):
        self.turns = []

    def converses(self, side):
        return True

    def answer(self, text, side, write):
        if text in ("too long", f"too long for the {side} model"):
            raise DataError("it does not fit.")
        pieces = (side, f" {len(self.turns)}", " <b>")
        for piece in pieces:
            write(piece)
        return "".join(pieces)


def echo(monkeypatch, chat=Echo) -> None:
    """Let runs without models answer."""
    monkeypatch.setattr("ftengine.Chat", chat, raising=False)
    monkeypatch.setattr("ftengine.load_run", lambda *arguments, **options: None, raising=False)


def open_studio(runs: Sequence[Path], token: str, port: int, seed: int = 0, host: str = "127.0.0.1"):
    """Return the application for some runs."""
    from ftengine_studio.runs import find_runs
    from ftengine_studio.server import Studio

    return Studio(find_runs(runs), seed).app(token, host, port)
