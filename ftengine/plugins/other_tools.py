"""Keys that people bring from other tools, and what a recipe calls them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_OURS = {
    "model.source": "model_name model_name_or_path base_model",
    "model.dtype": "torch_dtype",
    "data.train": "dataset dataset_name train_file train_data",
    "data.validation": "eval_file eval_data validation_file",
    "data.test": "test_file",
    "model.loader.trust_remote_code": "trust_remote_code",
    "task.max_length": "max_seq_length max_seq_len max_length",
    "strategy.rank": "r lora_r lora_rank",
    "strategy.alpha": "lora_alpha",
    "strategy.dropout": "lora_dropout",
    "strategy.targets": "target_modules lora_target lora_target_modules",
    "train.learning_rate": "lr learning_rate",
    "train.epochs": "num_train_epochs num_epochs epoch epochs",
    "train.max_steps": "max_steps",
    "train.batch_size": "per_device_train_batch_size train_batch_size micro_batch_size batch_size",
    "train.accumulate": "gradient_accumulation_steps accumulation_steps grad_accum",
    "train.optimizer": "optim optimizer optimizer_type",
    "train.schedule": "lr_scheduler lr_scheduler_type scheduler",
    "train.warmup": "warmup_steps warmup_ratio",
    "train.weight_decay": "weight_decay",
    "train.max_grad_norm": "max_grad_norm gradient_clipping",
    "train.gradient_checkpointing": "gradient_checkpointing",
    "train.checkpoint_every": "save_steps",
    "train.keep_checkpoints": "save_total_limit",
    "train.validate_every": "eval_steps",
    "train.keep_best": "load_best_model_at_end",
    "train.early_stopping.patience": "early_stopping_patience",
    "evaluation.batch_size": "per_device_eval_batch_size eval_batch_size",
    "callbacks": "report_to",
    "output": "output_dir",
    "seed": "data_seed",
}
ELSEWHERE: Mapping[str, str] = {key: place for place, keys in _OURS.items() for key in keys.split()}
"""By another tool's key, the place in a recipe. A key that ftengine has too is here for where it is put elsewhere."""

_NONE = "ftengine has no such key"
_QUANTISED = (
    f"{_NONE}: name a quantised model.source, or a loader that quantises (plugin ftengine-quant) with its option bits."
)
_VALIDATE = f"{_NONE}; set train.validate_every to a number of steps, or null for once an epoch."

SAID: Mapping[str, str] = {
    "bf16": "Set train.precision to bfloat16.",
    "fp16": "Set train.precision to float16.",
    "tf32": f"{_NONE}; float32 products follow torch's own setting.",
    "load_in_4bit": _QUANTISED,
    "load_in_8bit": _QUANTISED,
    "logging_steps": f"{_NONE}: every step is logged, in metrics.jsonl.",
    "save_strategy": f"{_NONE}; set train.checkpoint_every to a number of steps, or null for once an epoch.",
    "eval_strategy": _VALIDATE,
    "evaluation_strategy": _VALIDATE,
    "num_labels": f"{_NONE}: labels are learnt from the data.",
    "num_classes": f"{_NONE}: labels are learnt from the data.",
    "packing": "Set task.packing (of causal-lm); other tasks make batches of rows of like length.",
    "group_by_length": f"{_NONE}: batches are made of rows of like length always.",
    "device_map": f"{_NONE}: a model lies on one device for each process; train.parallel: fsdp shards it over several.",
    "push_to_hub": f"{_NONE}: runs stay on this machine.",
}
"""By another tool's key, what to do instead."""


def hint(key: str, meant: Mapping[str, str], here: str, known: Collection[str]) -> str:
    """Return what to write instead of a key, as a sentence with a space before it; "" where that is not known.

    Args:
        key: what was written.
        meant: what the section or component says of keys: one of its own, or a sentence.
        here: the section, with a full stop, such as "train.".
        known: keys of the section or component.
    """
    said = meant.get(key) or SAID.get(key, "")
    if " " in said:
        return f" {said}"
    place = said or ELSEWHERE.get(key, "")
    own = place.removeprefix(here)
    if "." in own:
        own = place
    elif own != place and own not in known:  # an option of other components of this kind
        own = ""
    return f" Did you mean {own!r}?" if own else ""
