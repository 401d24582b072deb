"""The files of PeftModel.save_pretrained, written and read with ftengine's checks."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor

from ftengine import api
from ftengine.errors import BaseMismatch, RunError, json_of_file
from ftengine.model import save_tensors
from ftengine_peft.methods import IGNORED
from ftengine_peft.options import OWNED
from ftengine_peft.targets import TASK_TYPES, modules_to_save

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
EMBEDDINGS = ("embed_tokens", "lm_head")
"""Names of embeddings whose own weights PEFT saves beside an adapter of theirs."""

PLAIN_INITS = frozenset({"gaussian", "kaiming_uniform", "lycoris", "orthogonal", "xavier_uniform"})
"""Initialisations that leave the base as it is."""

CHOOSING = frozenset({"exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"})
"""Options that choose modules, in which files and recipes may differ in words; the tensors' names tell."""


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """Return the tensors that PEFT saves for an adapter, by PEFT's keys."""
    # "auto" asks the hub whether the base's vocabulary was larger, which no strategy changes.
    return get_peft_model_state_dict(model, save_embedding_layers="auto" if _adapts_embeddings(model) else False)


def whole_tensors(loaded: api.LoadedModel, whole: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of the modules that train whole, by PEFT's keys."""
    return {
        f"{PREFIX}{path}.{name}": tensor
        for path in whole
        for name, tensor in loaded.module.get_submodule(path).state_dict().items()
    }


def write(model: PeftModel, loaded: api.LoadedModel, whole: list[str], directory: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors (RunError: they cannot be written)."""
    save_tensors(adapter_tensors(model) | whole_tensors(loaded, whole), directory / WEIGHTS_FILE)
    config: Any = copy.copy(model.peft_config["default"])
    config.task_type = TASK_TYPES.get(loaded.head)
    config.base_model_name_or_path, config.inference_mode = loaded.source, True
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = modules_to_save(loaded, whole)
    for name, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))  # the same file for the same run
    kind = type(loaded.module)
    mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    try:
        config.save_pretrained(str(directory), auto_mapping_dict=None if config.task_type else mapping)
    except OSError as error:
        raise RunError(f"cannot write {str(directory)!r}: {error}. Free some space.") from None


def require_same(config: PeftConfig, options: Iterable[str], directory: Path) -> None:
    """Require that a folder's adapter_config.json agrees with the options of a prepared model.

    Raises:
        RunError: the file is missing, not JSON, or of another method.
        BaseMismatch: an option that affects the outputs differs.
    """
    file = directory / CONFIG_FILE
    try:
        stored = json_of_file(file)
    except (OSError, ValueError) as error:
        raise RunError(f"{str(file)!r} cannot be read: {error}.") from None
    own = as_stored(config)
    if not isinstance(stored, dict) or stored.get("peft_type") != own["peft_type"]:
        kind = stored.get("peft_type") if isinstance(stored, dict) else type(stored).__name__
        raise RunError(f"{str(file)!r} describes {kind!r}, not {own['peft_type']!r}.")
    skipped = OWNED | CHOOSING | IGNORED.get(own["peft_type"], frozenset())
    for name in sorted((own.keys() | stored.keys()) - skipped):
        saved, expected = _sorted(stored.get(name, own.get(name))), _sorted(own.get(name))
        if saved == expected or (_unset(saved) and _unset(expected)) or _only_begins(name, saved, expected):
            continue
        known = f"Set strategy.{name} to what the file says." if name in options else "Use that adapter with PEFT."
        raise BaseMismatch(f"{str(file)!r} has {name} {saved!r}, the model is prepared with {expected!r}. {known}")


def as_stored(config: PeftConfig) -> dict[str, Any]:
    """Return a configuration in the form of its file."""
    content: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=sorted))
    return content


def _unset(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _only_begins(name: str, *values: Any) -> bool:
    """Return whether an option only affects training, or the initial values of the stored tensors."""
    if "dropout" in name:
        return True
    # By a word, PEFT may change the base's weights (pissa), or compute in another way (bat).
    return "init" in name and all(not isinstance(value, str) or value in PLAIN_INITS for value in values)


def _sorted(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


def _adapts_embeddings(model: PeftModel) -> bool:
    targets = getattr(model.peft_config["default"], "target_modules", None) or ()
    if isinstance(targets, str):
        paths = (path for path, _ in model.get_base_model().named_modules())
        return any(re.fullmatch(targets, path) and path.endswith(EMBEDDINGS) for path in paths)
    return any(name in targets for name in EMBEDDINGS)
