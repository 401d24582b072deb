"""What the comparison of fast paths costs beside the training that it guards: peak memory and seconds.

A Llama of random weights in bfloat16 is trained with LoRA for a few steps, each setting in a process of its own with an
empty cache, so that the comparison runs. Peaks are those of resident memory, reset between phases. Seconds are the
process's on the processor, so that other programs count little; a run of 100 steps is 100 times the mean of the steps
after the first.

    python benchmarks/check_cost.py WORK_FOLDER
    python benchmarks/check_cost.py WORK_FOLDER --tokens 2048 --batch 1 --json benchmarks/results/DEVICE/check_cost.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS, RUN = 4, 100
"""Steps that are trained, and those of the run that a comparison is measured by."""
PHASES = ("compare fast paths", "train")


def build(folder: Path, hidden: int, layers: int, vocabulary: int) -> None:
    """Write a Llama of random weights with a tokenizer of bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ftengine.testing.models import byte_level_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
        max_position_embeddings=8192,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    byte_level_tokenizer(pad_token="<pad>").save_pretrained(folder)


def write_rows(file: Path, tokens: int, count: int = 24) -> None:
    """Write completions of about so many bytes, of which a sixth is trained, that begin differently."""
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for i in range(count):
            words = " ".join(draw.choice(("night", "morning", "rain", "wind", "sun")) for _ in range(tokens // 6))
            cut = tokens * 5 // 6 - 16
            out.write(json.dumps({"prompt": f"{i} {words[:cut]}", "completion": words[cut : tokens - 16]}) + "\n")


class Phases:
    """A listener that takes peak memory and time of each phase."""

    def __init__(self) -> None:
        self.measured: dict[str, dict[str, float]] = {}
        self.steps: list[float] = []
        self._name, self._began = "start", time.process_time()

    def end(self) -> None:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        values = dict(line.split(":", 1) for line in lines)
        kib = {name: int(values[name].split()[0]) for name in ("VmHWM", "VmRSS")}
        figures = {"seconds": time.process_time() - self._began, "peak_mib": kib["VmHWM"] / 1024}
        self.measured.setdefault(self._name, {**figures, "held_mib": kib["VmRSS"] / 1024})
        Path("/proc/self/clear_refs").write_text("5")

    def phase(self, name: str, total: int | None = None) -> None:
        self.end()
        self._name, self._began = name, time.process_time()

    def advance(self, steps: int = 1, **figures: float) -> None:
        if self._name == "train":
            self.steps.append(time.process_time())

    def message(self, text: str) -> None:
        if text.startswith("fast paths"):
            print(text, file=sys.stderr)


def measure(folder: Path, model: Path, tokens: int, batch: int, strategy: str) -> dict[str, Any]:
    """Train a few steps; return the peaks of comparison and training, and the seconds of the comparison and a step."""
    from ftengine import Recipe, fine_tune

    os.environ["FTENGINE_CACHE"] = str(folder / "cache")
    for name in ("cache", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
    write_rows(folder / "rows.jsonl", tokens)
    recipe = Recipe.make(
        {
            "model": {"source": str(model)},
            "task": {"name": "causal-lm", "max_length": tokens},
            "data": {"train": str(folder / "rows.jsonl"), "validation": None, "test": None, "leaks": "warn"},
            "strategy": strategy,
            "train": {"max_steps": STEPS, "batch_size": batch, "precision": "bfloat16"},
            "output": str(folder / "run"),
        }
    )
    listener = Phases()
    fine_tune(recipe, listener=listener)
    compared, trained = (listener.measured[name] for name in PHASES)
    step = (listener.steps[-1] - listener.steps[0]) / (len(listener.steps) - 1)
    return {
        "tokens": tokens,
        "batch": batch,
        "strategy": strategy,
        "peak_mib": {"comparison": round(compared["peak_mib"]), "training": round(trained["peak_mib"])},
        "seconds": {"comparison": round(compared["seconds"], 1), "step": round(step, 2)},
        "share_of_run": round(compared["seconds"] / (RUN * step), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--strategy", default="lora")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    model = asked.folder / f"llama-{asked.hidden}-{asked.layers}-{asked.vocabulary}"
    if asked.one:
        print(json.dumps(measure(asked.folder, model, **asked.one)))
        return
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not (model / "config.json").is_file():
        build(model, asked.hidden, asked.layers, asked.vocabulary)
    results = []
    for tokens in asked.tokens:
        for batch in asked.batch:
            one = json.dumps({"tokens": tokens, "batch": batch, "strategy": asked.strategy})
            command = [sys.executable, *sys.argv, "--one", one]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(results[-1]), flush=True)
    if asked.json:
        from ftengine.run.environment import hardware, versions

        about = {"model": model.name, "hardware": hardware(), "versions": versions()}
        asked.json.write_text(json.dumps({**about, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
