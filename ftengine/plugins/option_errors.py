"""Messages of option errors: pydantic's errors in ftengine's wording, and advice on keys of other tools."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ftengine.errors import did_you_mean

_WORDINGS = {
    "a number above {gt}": "greater_than",
    "{ge} or more": "greater_than_equal",
    "a number below {lt}": "less_than",
    "{le} or less": "less_than_equal",
    "a multiple of {multiple_of}": "multiple_of",
    "{expected}": "literal_error enum",
    "true or false": "bool_type bool_parsing",
    "a whole number": "int_type int_parsing int_from_float",
    "a number": "float_type float_parsing",
    "a finite number": "finite_number",
    "text": "string_type",
    "text of {min_length} or more characters": "string_too_short",
    "text of {max_length} or fewer characters": "string_too_long",
    "text that matches {pattern}": "string_pattern_mismatch",
    "a list": "list_type tuple_type set_type",
    "{min_length} items or more": "too_short",
    "{max_length} items or fewer": "too_long",
    "a mapping": "dict_type model_type model_attributes_type",
    "null": "none_required",
    "a number of bytes, such as 6 GiB": "byte_size byte_size_unit",
}
EXPECTED = {error: wording for wording, errors in _WORDINGS.items() for error in errors.split()}
"""What a value must be, by pydantic's type of the error; other errors keep pydantic's message."""

_ALTERNATIVE = re.compile(r"float|str|int|bool|none|constrained-\w+|(?:list|dict|tuple|set|literal|function-\w+)\[.*")
"""The last step of an error's location if a key allows several types: the name of one of them."""


_PLACES = {
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
ELSEWHERE: Mapping[str, str] = {key: place for place, keys in _PLACES.items() for key in keys.split()}
"""Places in a recipe by other tools' keys. Keys that ftengine has too are listed for when they are misplaced."""

_NONE = "ftengine has no such key"
_QUANTISED = (
    f"{_NONE}: name a quantised model.source, or a loader that quantises (plugin ftengine-quant) with its option bits."
)
_VALIDATE = f"{_NONE}; set train.validate_every to a number of steps, or null for once an epoch."

ADVICE: Mapping[str, str] = {
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
    "packing": "Set task.packing (of causal-lm); other tasks make batches of rows of similar length.",
    "group_by_length": f"{_NONE}: batches always have rows of similar length.",
    "device_map": f"{_NONE}: each process has the model on one device; train.parallel: fsdp shards it over processes.",
    "push_to_hub": f"{_NONE}: runs stay on this machine.",
}
"""What to do in place of other tools' keys."""


def explain(error: ValidationError, model: type[Any], prefix: str = "", owner: str = "") -> str:
    """Return a pydantic error as a message with key, value, what is allowed and the nearest key.

    Args:
        error: raised by `model`.
        model: the model that was validated. Its attribute `meant` may map wrong keys that people write to the right
            key, or to a sentence on what to do.
        prefix: prefix of the model's keys.
        owner: owner of the keys, such as " of strategy 'NAME'".
    """
    parts = []
    unknown: dict[str, list[str]] = {}  # unknown keys by what is allowed
    wrong: dict[str, tuple[list[str], Any]] = {}  # by key: what is allowed, and the value
    for item in error.errors():
        steps = [str(step) for step in item["loc"]]
        path = [step for step in steps[:-1] if not step.startswith("function-")] + steps[-1:]  # lists with validators
        key = prefix + ".".join(path)
        if item["type"] == "extra_forbidden":
            section = _section(model, path[:-1])
            keys, meant = sorted(getattr(section, "model_fields", ())), getattr(section, "meant", {})
            hint = _hint(path[-1], meant, key.removesuffix(path[-1]), keys) or did_you_mean(path[-1], keys)
            allowed = f"Allowed: {', '.join(keys)}" if keys else "It has no options"
            if hint:
                parts.append(f"unknown key {key!r}{owner}. {allowed}.{hint}")
            else:
                unknown.setdefault(allowed, []).append(repr(key))
        elif item["type"] == "missing":
            parts.append(f"key {key!r}{owner} is missing; it is required.")
        elif item["type"] in EXPECTED:
            if len(path) > 1 and _ALTERNATIVE.fullmatch(path[-1]):
                key = prefix + ".".join(path[:-1])
            limits = {k: f"{v:g}" if isinstance(v, float) else v for k, v in item.get("ctx", {}).items()}
            expected = EXPECTED[item["type"]].format(**limits)
            wrong.setdefault(key, ([], item.get("input")))[0].append(expected)
        else:
            text = item["msg"].removeprefix("Value error, ")
            stop = "" if text.endswith(".") else "."
            got = f" (got {_shown(item.get('input'))})"
            parts.append(f"key {key!r}{owner}: {text}{got}{stop}" if path else text + stop)
    for allowed, keys in unknown.items():
        parts.append(f"unknown key{'s' * (len(keys) > 1)} {', '.join(keys)}{owner}. {allowed}.")
        if len(keys) > 2 and owner:
            parts.append(
                f"If they belong to another component, `--set {prefix.rstrip('.')}=NAME` selects one without options."
            )
    parts += [
        f"key {key!r}{owner}: must be {' or '.join(dict.fromkeys(expected))}, not {_shown(value)}"
        f"{_example(model, key.removeprefix(prefix), key, expected, value)}."
        for key, (expected, value) in wrong.items()
    ]
    return " ".join(parts)


def _hint(key: str, meant: Mapping[str, str], here: str, keys: Collection[str]) -> str:
    """Return a sentence, after a space, on what to write instead of a key; "" without advice.

    Args:
        key: the wrong key.
        meant: from the section or component: by wrong key, the right key or a sentence.
        here: prefix of the section, such as "train.".
        keys: keys of the section or component.
    """
    advice = meant.get(key) or ADVICE.get(key, "")
    if " " in advice:
        return f" {advice}"
    place = advice or ELSEWHERE.get(key, "")
    own = place.removeprefix(here)
    if "." in own:
        own = place
    elif own != place and own not in keys:  # an option of other components of this kind
        own = ""
    return f" Did you mean {own!r}?" if own else ""


def _example(model: type[Any], path: str, key: str, expected: list[str], value: Any) -> str:
    """Return an example: a single value wrapped in the list or section that its key needs; "" if there is none.

    For a text that YAML read as a mapping, such as `query: `, the example is the text in quotes.
    """
    form: Any = None
    if "text" in expected and isinstance(value, dict) and [*value.values()] == [None]:
        form = f"{next(iter(value))}: "
    if value is not None and not isinstance(value, (dict, list)):
        if expected == ["a list"] and isinstance(value, str):
            form = [value]
        elif expected == ["a mapping"] and (section := _section(model, path.split("."))) is not None:
            form = _with_first(section, value)
    return f", for example {yaml.safe_dump({key: form}, default_flow_style=True).strip()[1:-1]}" if form else ""


def _section(model: type[Any], path: list[str]) -> type[Any] | None:
    """Return the section that a key holds, even if it may also be null."""
    for step in path:
        field = getattr(model, "model_fields", {}).get(step)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if section is None:
            return None
        model = section
    return model


def _with_first(section: type[BaseModel], value: Any) -> dict[str, Any]:
    """Return {first key of the section: value}, with the key's default if the value is not valid for it."""
    name, field = next(iter(section.model_fields.items()))
    try:
        section.model_validate({name: value}, strict=True)
    except ValidationError:
        return {} if field.is_required() else {name: field.default}
    return {name: value}


def _shown(value: Any) -> str:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
