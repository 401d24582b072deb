"""Keys that people bring from other tools, and what a recipe calls them."""

from __future__ import annotations

from collections.abc import Mapping

ELSEWHERE: Mapping[str, str] = {
    "model_name": "model.source",
    "model_name_or_path": "model.source",
    "base_model": "model.source",
    "torch_dtype": "model.dtype",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "train_file": "data.train",
    "train_data": "data.train",
    "eval_file": "data.validation",
    "eval_data": "data.validation",
    "validation_file": "data.validation",
    "test_file": "data.test",
    "lr": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "epoch": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "micro_batch_size": "train.batch_size",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "eval_batch_size": "evaluation.batch_size",
    "gradient_accumulation_steps": "train.accumulate",
    "accumulation_steps": "train.accumulate",
    "grad_accum": "train.accumulate",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "scheduler": "train.schedule",
    "warmup_steps": "train.warmup",
    "warmup_ratio": "train.warmup",
    "max_grad_norm": "train.max_grad_norm",
    "gradient_clipping": "train.max_grad_norm",
    "save_steps": "train.checkpoint_every",
    "save_total_limit": "train.keep_checkpoints",
    "eval_steps": "train.validate_every",
    "load_best_model_at_end": "train.keep_best",
    "early_stopping_patience": "train.early_stopping.patience",
    "max_seq_length": "task.max_length",
    "max_seq_len": "task.max_length",
    "max_length": "task.max_length",
    "output_dir": "output",
    "report_to": "callbacks",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "weight_decay": "train.weight_decay",
    "learning_rate": "train.learning_rate",
    "batch_size": "train.batch_size",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "data_seed": "seed",
}
"""By another tool's key, the place in a recipe. A key that ftengine has too is here for where it is put elsewhere."""

SAID: Mapping[str, str] = {
    "bf16": "Set train.precision to bfloat16.",
    "fp16": "Set train.precision to float16.",
    "tf32": "ftengine has no such key; float32 products follow torch's own setting.",
    "load_in_4bit": "ftengine has no such key: weights are loaded as model.source holds them, so name a source that is "
    "quantised.",
    "load_in_8bit": "ftengine has no such key: weights are loaded as model.source holds them, so name a source that is "
    "quantised.",
    "logging_steps": "ftengine has no such key: every step is logged, in metrics.jsonl.",
    "save_strategy": "ftengine has no such key; set train.checkpoint_every to a number of steps, or null for once an "
    "epoch.",
    "eval_strategy": "ftengine has no such key; set train.validate_every to a number of steps, or null for once an "
    "epoch.",
    "evaluation_strategy": "ftengine has no such key; set train.validate_every to a number of steps, or null for once "
    "an epoch.",
    "optim": "ftengine has no such key: the optimiser is AdamW.",
    "optimizer": "ftengine has no such key: the optimiser is AdamW.",
    "packing": "ftengine has no such key: an example is a row, and batches are made of rows of like length.",
    "group_by_length": "ftengine has no such key: batches are made of rows of like length always.",
    "device_map": "ftengine has no such key: a model lies on one device, or one for each process of `accelerate "
    "launch`.",
    "trust_remote_code": "ftengine has no such key: code that comes with a model is not run.",
    "push_to_hub": "ftengine has no such key: runs stay on this machine.",
}
"""By another tool's key, what to do instead."""


def hint(key: str, known: Mapping[str, str], here: str) -> str:
    """Return what to write instead of a key, as a sentence with a space before it; "" where that is not known.

    Args:
        key: what was written.
        known: what the section or component says of keys: one of its own, or a sentence.
        here: the section, with a full stop, such as "train.".
    """
    if key in known:
        return f" {known[key]}" if " " in known[key] else f" Did you mean {known[key]!r}?"
    if key in SAID:
        return f" {SAID[key]}"
    place = ELSEWHERE.get(key, "")
    if place.startswith(here) and "." not in place.removeprefix(here):
        place = place.removeprefix(here)
    return f" Did you mean {place!r}?" if place else ""
