"""Answers of SmolLM2-135M: ftengine's generator against transformers' `generate`, in turn, on the same prompts.

Each case is answered by both, several times in turn; the best rate of each counts. transformers is given its best batch
of those that `--batches` names. Let nothing else run meanwhile.

    python benchmarks/generation.py MODEL_FOLDER --json benchmarks/results/DEVICE/generation.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ftengine.api import LoadedModel
from ftengine.generation import GenerationOptions, draw_answers
from ftengine.run.environment import hardware, versions
from ftengine_builtins.fast_paths import CpuGates, CpuNorms, CpuRotary, SharedPrefix

QUESTIONS = 64
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Answers = list[list[int]]


def prompts_of(tokenizer: Any) -> list[list[int]]:
    """Return chat prompts of some 50 tokens, of which about 30 are the template's system message."""
    asked = [f"Tell me {n} things about the number {7 * n} and the city of number {n}." for n in range(QUESTIONS)]
    chat = ([{"role": "user", "content": text}] for text in asked)
    return [tokenizer.apply_chat_template(x, add_generation_prompt=True, return_dict=False) for x in chat]


def by_transformers(
    model: Any, prompts: Sequence[list[int]], new: int, batch: int, stop: Sequence[int], *, drawn: bool
) -> Answers:
    """Answer prompts by `generate`, so many in a batch."""
    config = GenerationConfig(
        max_new_tokens=new, do_sample=drawn, top_k=0, eos_token_id=list(stop) or None, pad_token_id=0
    )
    answers: Answers = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        longest = max(map(len, some))
        ids = torch.tensor([[0] * (longest - len(x)) + x for x in some])
        mask = torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in some])
        with torch.no_grad():
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        answers += [until(x, stop) for x in output[:, longest:].tolist()]
    return answers


def until(tokens: list[int], stop: Sequence[int]) -> list[int]:
    """Return tokens up to the first that stops."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in stop), None)]


def by_ftengine(
    loaded: LoadedModel, prompts: Sequence[list[int]], new: int, stop: Sequence[int], *, drawn: bool, together: int
) -> Answers:
    """Answer prompts by the generator, so many of them given at one time."""
    options = GenerationOptions(max_new_tokens=new, temperature=1.0 if drawn else 0.0, seed=0)
    answers: Answers = []
    for start in range(0, len(prompts), together):
        some = prompts[start : start + together]
        answers += [x.tokens for x in draw_answers(loaded, some, options, stop, range(len(some)))]
    return answers


def seconds(run: Callable[[], Answers]) -> tuple[float, int]:
    """Return the seconds and the new tokens of a run."""
    started = time.perf_counter()
    answers = run()
    return time.perf_counter() - started, sum(map(len, answers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cases", nargs="+", help="names of cases; default: all")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(
        given.model, dtype=DTYPES[given.dtype], attn_implementation="sdpa"
    ).eval()
    loaded = LoadedModel(model, tokenizer, str(given.model), "causal-lm")
    loaded.inference_paths = (SharedPrefix(), CpuNorms(), CpuGates(), CpuRotary())
    prompts, end = prompts_of(tokenizer), [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    cases: dict[str, dict[str, Any]] = {
        "64 prompts": {"prompts": prompts, "stop": [], "drawn": False},
        "64 prompts, as they end": {"prompts": prompts, "stop": end, "drawn": True},
        "8 answers to 8 prompts": {"prompts": [x for x in prompts[:8] for _ in range(8)], "stop": [], "drawn": True},
        "4 prompts, one at a time": {"prompts": prompts[:4], "stop": [], "drawn": False, "single": True},
    }
    results: dict[str, Any] = {}
    for name, case in cases.items():
        if given.cases and name not in given.cases:
            continue
        single = case.pop("single", False)
        batches, together = ([1], 1) if single else (given.batches, len(case["prompts"]))
        runs: dict[str, Callable[[], Answers]] = {
            f"transformers {n}": lambda n=n, case=case: by_transformers(model, new=given.new, batch=n, **case)
            for n in batches
        }
        runs["ftengine"] = lambda case=case, n=together: by_ftengine(loaded, new=given.new, together=n, **case)
        rates: dict[str, float] = {}
        for _ in range(given.turns):
            for who, run in runs.items():
                took, tokens = seconds(run)
                rates[who] = max(rates.get(who, 0.0), tokens / took)
        best = max(rate for who, rate in rates.items() if who != "ftengine")
        results[name] = {"tokens_per_second": rates, "ratio": rates["ftengine"] / best}
        print(name, {who: round(rate, 1) for who, rate in rates.items()}, f"ratio {results[name]['ratio']:.2f}")
    if given.json:
        content = {"threads": given.threads, "dtype": given.dtype, "new": given.new, "cases": results}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({**hardware(), **versions(), **content}, indent=2) + "\n")


if __name__ == "__main__":
    main()
