"""Read, divide, audit, encode and plan many conversations of mixed sources: seconds and the peak of memory.

    python benchmarks/many_rows.py --rows 100000

A quarter each is in the layouts of OpenAI (with calls of tools), ShareGPT, Alpaca and TRL. The model is a tiny Llama,
so that what is measured is what rows cost. Nothing is kept of an earlier call: the cache is a new folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftengine.testing.models import tiny_llama

TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WORDS = [f"{a}{b}{c}{d}" for a in "bdklmnprst" for b in "aeiou" for c in "lnrst" for d in "aeio"]


def said(rng: random.Random, most: int = 30) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(5, most)))


def openai(rng: random.Random) -> dict[str, Any]:
    arguments = json.dumps({"city": said(rng, 7)})
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": arguments}}
    asked = {"role": "user", "content": said(rng)}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    told = {"role": "tool", "tool_call_id": "c", "content": said(rng)}
    return {"messages": [asked, called, told, {"role": "assistant", "content": said(rng)}]}


def sharegpt(rng: random.Random) -> dict[str, Any]:
    turns = [{"from": who, "value": said(rng)} for _ in range(rng.randrange(1, 4)) for who in ("human", "gpt")]
    return {"conversations": turns}


def alpaca(rng: random.Random) -> dict[str, Any]:
    return {"instruction": said(rng), "input": said(rng), "output": said(rng)}


def trl(rng: random.Random) -> dict[str, Any]:
    answer = {"role": "assistant", "content": said(rng), "reasoning_content": said(rng)}
    return {"prompt": [{"role": "user", "content": said(rng)}], "completion": [answer]}


SOURCES: tuple[Callable[[random.Random], dict[str, Any]], ...] = (openai, sharegpt, alpaca, trl)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), random.Random(0)
        model, tokenizer = tiny_llama()
        tokenizer.chat_template = TEMPLATE
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        for make in SOURCES:
            with open(folder / f"{make.__name__}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(make(rng)) + "\n" for _ in range(chosen.rows // len(SOURCES)))
        sources = [{"source": str(folder / f"{make.__name__}.jsonl"), "weight": 1} for make in SOURCES]
        recipe = {
            "model": {"source": str(folder / "model")},
            "task": "causal-lm",
            "data": {"train": sources, "validation": 0.05},
            "strategy": "lora",
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
        size = sum(file.stat().st_size for file in folder.glob("*.jsonl"))
        before = 0.0
        for call in ("first", "again"):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "ftengine", "plan", str(folder / "recipe.yaml"), "--no-measure", "--json"],
                check=True,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "FTENGINE_CACHE": str(folder / "cache")},
            )
            seconds = time.perf_counter() - began
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            computed = used.ru_utime + used.ru_stime - before
            before += computed
            print(
                f"{call}: {chosen.rows:,} rows, {size / 1e6:.0f} MB: {seconds:.0f} s, {computed:.0f} s of the "
                f"processor, peak {used.ru_maxrss / 1024:.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
