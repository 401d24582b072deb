"""AdapterHub's files for bottleneck adapters, as the adapters library 1.x writes and reads them.

adapter_config.json and adapter.safetensors; head_config.json and model_head.safetensors for a trained head. Other
trained modules of the base model are in new_modules.safetensors, a file of ftengine's own.

For models that the library does not know, trained_config.json and trained.safetensors replace the first two.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from ftengine.errors import RunError
from ftengine.model import TRAINED_FILE, read_tensors, save_tensors
from ftengine_builtins.strategies.adapter_config import (
    CONFIG_FILE,
    OWN_CONFIG_FILE,
    AdapterFile,
    is_own,
    read_content,
    refuse_unsupported,
    write_json,
)

WEIGHTS_FILE, PICKLE_FILE = "adapter.safetensors", "pytorch_adapter.bin"
HEAD_CONFIG_FILE = "head_config.json"
HEAD_FILE, HEAD_PICKLE_FILE = "model_head.safetensors", "pytorch_model_head.bin"
NEW_MODULES_FILE = "new_modules.safetensors"
NAME = "ftengine"
"""The adapter's name inside the files; the library takes it over on loading, or another with load_as."""
VERSION = "adapters.1.3.0"
"""The version of the library whose files these are."""

MODEL_TYPES = frozenset(
    {
        *("bert", "deberta-v2", "distilbert", "electra", "gpt2", "llama", "mistral"),
        *("qwen2", "qwen3", "roberta", "t5", "vit", "xlm-roberta"),
    }
)
"""Models that the library opens as they are and computes as transformers does (its DeBERTa v1 it does not).

Among those whose sublayers ftengine knows.
"""

SUBLAYERS = {"attention": "mh_adapter", "output": "output_adapter", "cross": "cross_adapter"}
"""AdapterHub's switches, by kind of sublayer."""

INIT = {"identity": "mam_adapter", "bert": "bert", "houlsby": "houlsby"}
"""AdapterHub's names of the initialisations."""

# What every adapter has that ftengine computes; a file that says otherwise describes another function.
_FIXED = {
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "ln_before": False,
    "ln_after": False,
    "use_gating": False,
    "phm_layer": False,
    "inv_adapter": None,
    "stochastic_depth": 0.0,
}
_READ = frozenset(
    {
        *("architecture", "cross_adapter", "dropout", "is_parallel", "leave_out", "mh_adapter", "non_linearity"),
        *("original_ln_before", "output_adapter", "reduction_factor", "scaling"),
        *("init_weights", "init_weights_seed", "inv_adapter_reduction_factor"),  # how it started; of no inv_adapter
    }
)
"""What else the library writes; keys that begin with `phm_` and the like belong to phm_layer."""
_OF_PHM = frozenset({"factorized_phm_W", "factorized_phm_rule", "learn_phm", "shared_W_phm", "shared_phm_rule"}) | {
    *("hypercomplex_nonlinearity", "phm_bias", "phm_c_init", "phm_dim", "phm_init_range", "phm_rank")
}


class HubConfig(AdapterFile):
    """The content of adapter_config.json for a bottleneck adapter, called `name` inside the weights' keys.

    `sublayers` is empty if only a recipe names the places.
    """

    placement: str
    sublayers: list[str] | None = None
    reduction_factor: float | dict[str, float]
    non_linearity: Annotated[str, AfterValidator(str.lower)]
    scaling: float = 1.0
    dropout: float = 0.0
    leave_out: list[int] = Field([])
    init: str = "bert"
    name: str = NAME


def read_config(directory: Path) -> HubConfig:
    """Read adapter_config.json (RunError: it is missing, of another kind, or uses unsupported options)."""
    content, file = read_content(directory, "an AdapterHub")
    if isinstance(content, dict) and (kind := content.get("peft_type")):
        raise RunError(f"{str(file)!r} is PEFT's ({kind}), not AdapterHub's. Use strategy lora, prompt or prefix.")
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict) or not isinstance(content.get("name"), str) or "version" not in content:
        raise RunError(
            f"{str(file)!r} lacks config, name or version, which AdapterHub writes since version 1. "
            "Load an older adapter with the adapters library and save it again."
        )
    if config.get("architecture") is not None:
        raise RunError(f"{str(file)!r} describes {config['architecture']!r}; strategy adapter is for bottlenecks.")
    used = {key: config[key] for key, value in _FIXED.items() if key in config and config[key] != value}
    used |= {key: value for key, value in config.items() if value and key not in _FIXED.keys() | _READ | _OF_PHM}
    if isinstance(config.get("scaling"), str):
        used["scaling"] = config["scaling"]  # "learned", "channel"
    before, parallel = config.get("original_ln_before"), config.get("is_parallel")
    if parallel and before:
        used["original_ln_before"] = True
    refuse_unsupported(used, file, "Use that adapter with the adapters library.")
    own = {
        "placement": "pfeiffer" if before else "parallel" if parallel else "houlsby",
        "sublayers": [kind for kind, switch in SUBLAYERS.items() if config.get(switch)] or None,
        "name": content["name"],
    }
    return HubConfig.parse({**config, **own}, file, "AdapterHub")


def write_config(directory: Path, config: HubConfig, module: nn.Module, source: str, own: bool) -> None:
    """Write adapter_config.json, under another name if the library does not know the model (`own`; RunError)."""
    entries = {
        **_FIXED,
        **{switch: name in config.sublayers for name, switch in SUBLAYERS.items()},
        **config.model_dump(include={"non_linearity", "scaling", "dropout", "leave_out"}),
        "original_ln_before": config.placement == "pfeiffer",
        "is_parallel": config.placement == "parallel",
        "reduction_factor": _as_written(config.reduction_factor),
        "init_weights": INIT[config.init],
    }
    file = Path(directory) / (OWN_CONFIG_FILE if own else CONFIG_FILE)
    write_json(file, {**_about(module, source), "name": config.name, "config": entries})


def write_head_config(directory: Path, module: nn.Module, source: str) -> None:
    """Write head_config.json, for a head that is part of the model's class."""
    config: Any = getattr(module, "config", None)
    labels = getattr(config, "label2id", None) or {}
    head = {"config": None, "name": None, "label2id": labels, "num_labels": getattr(config, "num_labels", len(labels))}
    write_json(Path(directory) / HEAD_CONFIG_FILE, {**_about(module, source), **head})


def key(location: str, inner: str, name: str = NAME) -> str:
    """Return AdapterHub's key of an adapter's tensor; `inner` is its name here, e.g. "down.weight"."""
    inner = inner.replace("down.", "adapter_down.0.").replace("up.", "adapter_up.")
    return f"{location}.adapters.{name}.{inner}"


def read_weights(directory: Path, name: str) -> dict[str, Tensor]:
    """Read the adapter's tensors, its name replaced by `NAME` (RunError: damaged, or a pickle of other objects)."""
    own = is_own(directory)
    tensors = read_tensors(directory / TRAINED_FILE) if own else _read(directory, WEIGHTS_FILE, PICKLE_FILE)
    return {key.replace(f".adapters.{name}.", f".adapters.{NAME}."): tensor for key, tensor in tensors.items()}


def read_head(directory: Path) -> dict[str, Tensor]:
    """Read the head's tensors; empty where the folder has none."""
    files = HEAD_FILE, HEAD_PICKLE_FILE
    return _read(Path(directory), *files) if any(Path(directory, file).exists() for file in files) else {}


def read_new_modules(directory: Path) -> dict[str, Tensor]:
    """Read the trained modules of the base model; empty if the folder has none."""
    file = Path(directory) / NEW_MODULES_FILE
    return read_tensors(file) if file.exists() else {}


def write_tensors(directory: Path, file: str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in float32; without tensors, write no file."""
    if tensors:
        save_tensors({key: tensor.float() for key, tensor in tensors.items()}, Path(directory) / file)


def without_prefix(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Remove the base model's name from keys: files of a bare BertModel lack it, those of a classifier have it."""
    prefix = getattr(module, "base_model_prefix", "") or ""
    return {key.removeprefix(f"{prefix}."): tensor for key, tensor in tensors.items()}


def _read(directory: Path, safe: str, pickled: str) -> dict[str, Tensor]:
    if (directory / safe).exists() or not (directory / pickled).exists():
        return read_tensors(directory / safe)
    file = directory / pickled
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"{str(file)!r} is not a plain pickle of tensors: {first} Save it as safetensors where you trust it: "
            "model.save_adapter(folder, name, use_safetensors=True)."
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise RunError(f"{str(file)!r} holds no tensors by name. It must be the file that AdapterHub wrote.")
    return tensors


def _as_written(factor: float | dict[str, float]) -> Any:
    """Return whole reduction factors as integers, like the library's own presets."""
    if isinstance(factor, dict):
        return {layer: _as_written(own) for layer, own in factor.items()}
    return int(factor) if float(factor).is_integer() else factor


def _about(module: nn.Module, source: str) -> dict[str, Any]:
    config: Any = getattr(module, "config", None)
    return {
        "model_type": getattr(config, "model_type", None),
        "hidden_size": getattr(config, "hidden_size", None),
        "model_name": source,
        "model_class": type(module).__name__,
        "version": VERSION,
    }
