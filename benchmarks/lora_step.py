"""Time and memory of LoRA training on the demo's data: ftengine against PEFT with transformers' own loss.

Both train SmolLM2-135M-Instruct with the same rank, targets, dropout, dtype and examples, eight to a batch.
`peft` is what a user of PEFT writes: batches in random order, logits of every position, labels masked with -100.
`ftengine-plain` is ftengine without its fast paths (`train.fast_paths: off`).
`peft-sorted` gets ftengine's batches, which tells how much of the difference is padding. `peft-layers` gets ftengine's
loss as well, so that only the layers differ.

Each provider trains on a few of the batches that its epoch has, drawn at random. Times are interleaved in one
process, provider by provider, round by round; figures are medians over rounds of milliseconds a real (unpadded)
token. Memory is the peak of a process of its own for each provider.

    python examples/chat/prepare.py
    python benchmarks/lora_step.py --json benchmarks/results/DEVICE/lora_step.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch

from ftengine import Recipe
from ftengine.data.batching import epoch_batches, padding_share
from ftengine.engine.experiment import Experiment
from ftengine.engine.fast_paths import fast_paths_of
from ftengine.engine.prepared_data import prepare_data
from ftengine.engine.prepared_model import load_base, prepare_strategy
from ftengine.model import Criterion
from ftengine.parallel.device import Device
from ftengine.run.environment import hardware, peak_memory_bytes, versions
from ftengine.training.modes import train_mode
from ftengine.training.steps import plan_steps

PROVIDERS = ("ftengine", "ftengine-plain", "peft-layers", "peft-sorted", "peft")
RECIPE = Path(__file__).parents[1] / "examples" / "chat" / "demo.yaml"


Provider = tuple[Callable[[], None], Callable[[], AbstractContextManager], dict]


def providers(names: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, Provider]:
    """Build, for each provider, a function that trains on its batches once, what holds then, and facts about them."""
    overrides = [] if arguments.dropout is None else [f"strategy.dropout={arguments.dropout}"]
    recipe = Recipe.read(RECIPE, [*overrides, f"train.precision={arguments.precision}"])
    data, device = prepare_data(Experiment.open(recipe)), Device.open(recipe)
    split, frozen = data.encoded["train"], device.precision.frozen

    def task_loss(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor | float]:
        return data.ready.task.loss(model, batch, Criterion())

    sorted_batches = epoch_batches(split.lengths, 8, 0, 0)[: arguments.batches]
    order = np.random.default_rng(1).permutation(len(split))[: 8 * arguments.batches]
    random_batches = [order[i : i + 8] for i in range(0, len(order), 8)]
    built = {}
    for name in names:
        batches = random_batches if name == "peft" else sorted_batches
        loaded, held = load_base(data.ready), nullcontext
        if name.startswith("ftengine"):
            strategy = prepare_strategy(device, data.ready, loaded)
            if name == "ftengine":
                steps = plan_steps(len(split), recipe.train, 1)
                held = fast_paths_of(data, device, loaded, strategy, steps).active
            model, loss = loaded.module, task_loss
        elif name == "peft-layers":
            # The transformers model with PEFT's layers in it: ftengine's loss reads the output head.
            model = peft_model(loaded.module, recipe.strategy, frozen).get_base_model()
            loss = task_loss
        else:
            model, loss = peft_model(loaded.module, recipe.strategy, frozen), transformers_loss
        train_mode(model)

        def epoch(model=model, loss=loss, batches=batches):
            for members in batches:
                batch = split.batch(members)
                with device.accelerator.autocast():
                    total, _ = loss(model, batch)
                total.backward()
                for parameter in model.parameters():
                    parameter.grad = None

        tokens = sum(int(split.lengths[members].sum()) for members in batches)
        built[name] = epoch, held, {"tokens": tokens, "padding": padding_share(split.lengths, batches)}
    return built


def peft_model(module: torch.nn.Module, strategy: dict, dtype: torch.dtype) -> torch.nn.Module:
    """Wrap the base with PEFT's LoRA, frozen weights in the compute dtype."""
    from peft import LoraConfig, get_peft_model

    module.to(dtype)
    config = LoraConfig(
        r=strategy["rank"],
        lora_alpha=strategy["alpha"],
        lora_dropout=strategy["dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(module, config)


def transformers_loss(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, int]:
    """Return the model's own mean loss, over logits of every position."""
    return model(**batch).loss, 1


def peak_bytes(name: str, arguments: argparse.Namespace) -> int:
    """Return the peak memory of a process that runs one provider once."""
    command = [sys.executable, __file__, "--only", name, "--batches", str(arguments.batches)]
    command += ["--precision", arguments.precision]
    command += [] if arguments.dropout is None else ["--dropout", str(arguments.dropout)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=8, help="batches trained on in a round (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all providers (default: 3)")
    parser.add_argument("--dropout", type=float, help="LoRA dropout (default: the demo's)")
    parser.add_argument("--precision", default="auto", help="compute dtype (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--only", choices=PROVIDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        epoch, held, _ = providers((arguments.only,), arguments)[arguments.only]
        with held():
            epoch()
        print(peak_memory_bytes())
        return

    memory = {name: peak_bytes(name, arguments) for name in PROVIDERS}
    built = providers(PROVIDERS, arguments)
    times: dict[str, list[float]] = {name: [] for name in PROVIDERS}
    for round_ in range(arguments.rounds + 1):
        for name, (epoch, held, facts) in built.items():
            with held():
                start = time.perf_counter()
                epoch()
                seconds = time.perf_counter() - start
            if round_:  # the first round warms up
                times[name].append(1000 * seconds / facts["tokens"])
    figures = {
        name: {
            "ms_a_token": statistics.median(times[name]),
            "rounds": times[name],
            "padding": built[name][2]["padding"],
            "peak_bytes": memory[name],
            "time_over_ftengine": statistics.median(
                other / own for other, own in zip(times[name], times["ftengine"], strict=True)
            ),
        }
        for name in PROVIDERS
    }
    print(f"{'':12} ms a token   times ftengine   padding   peak memory")
    for name, row in figures.items():
        print(
            f"{name:12} {row['ms_a_token']:10.2f} {row['time_over_ftengine']:16.2f} {row['padding']:9.1%}"
            f" {row['peak_bytes'] / 2**30:9.2f} GiB"
        )
    if arguments.json:
        settings = {key: value for key, value in vars(arguments).items() if key not in ("json", "only")}
        content = {"settings": settings, "hardware": hardware(), "versions": versions(), "figures": figures}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
