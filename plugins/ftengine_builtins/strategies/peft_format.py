"""PEFT's files for LoRA: adapter_config.json and adapter_model.safetensors (PEFT 0.19 to 0.21)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import LoadedModel
from ftengine.errors import BaseMismatch, RunError
from ftengine.model import copy_into, read_tensors, save_tensors
from ftengine_builtins.strategies.lora_layers import LoRAEmbedding, LoRALayer, lora_layers
from ftengine_builtins.strategies.targets import matches_name, whole_modules

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
_BASE_WEIGHT = ".base_layer.weight"

TASK_TYPES = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "feature-extraction": "FEATURE_EXTRACTION",
}

# Keys that say nothing about what the adapter computes, and those that `AdapterConfig` holds.
_READ = {
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "modules_to_save"),
}
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),  # read only by their initialisations
}
# Other initialisations change the base weights, so the adapter alone does not say what was trained.
_PLAIN_INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter_config.json says of a LoRA; field names are the recipe's."""

    rank: int
    alpha: float
    dropout: float
    rslora: bool
    targets: str | list[str]
    modules_to_save: tuple[str, ...]
    dora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)


SHARED = ("rank", "alpha", "targets", "rslora", "dora", "rank_pattern", "alpha_pattern")
"""What an adapter's own config decides about a model that is prepared for it."""


def read_config(directory: Path) -> AdapterConfig:
    """Read adapter_config.json of a LoRA.

    Raises:
        RunError: it is missing, is no LoRA, or uses an option of PEFT that ftengine does not have.
    """
    content, file = read_json(directory, "LORA")
    _refuse_unsupported(content, file)
    _refuse_malformed(content, file)
    return AdapterConfig(
        rank=int(content["r"]),
        alpha=float(content["lora_alpha"]),
        dropout=float(content.get("lora_dropout", 0)),
        rslora=bool(content.get("use_rslora")),
        targets=content["target_modules"],
        modules_to_save=tuple(content.get("modules_to_save") or ()),
        dora=bool(content.get("use_dora")),
        rank_pattern={name: int(rank) for name, rank in (content.get("rank_pattern") or {}).items()},
        alpha_pattern={name: float(alpha) for name, alpha in (content.get("alpha_pattern") or {}).items()},
    )


def read_json(directory: Path, peft_type: str) -> tuple[dict[str, Any], Path]:
    """Return the content of adapter_config.json, and the file.

    Raises:
        RunError: it is missing, cannot be read, or is of another type.
    """
    file = Path(directory) / CONFIG_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        inner = sorted(str(path.parent) for path in Path(directory).glob(f"*/{CONFIG_FILE}"))
        hint = f" Did you mean {' or '.join(map(repr, inner[:3]))}?" if inner else ""
        raise RunError(f"no {CONFIG_FILE} in {str(directory)!r}; a PEFT adapter folder has one.{hint}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {str(file)!r}: {error}. It must be the JSON file that PEFT wrote.") from None
    kind = content.get("peft_type") if isinstance(content, dict) else type(content).__name__
    if kind != peft_type:
        raise RunError(f"{str(file)!r} describes {kind!r}, not {peft_type!r}.")
    return content, file


def write_config(directory: Path, config: AdapterConfig, loaded: LoadedModel, fan_in_fan_out: bool) -> None:
    """Write adapter_config.json of a LoRA; `fan_in_fan_out` says that weights are stored as (in, out).

    Raises:
        RunError: the file cannot be written.
    """
    content = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": _whole(config.alpha),
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": config.targets,
        "modules_to_save": list(config.modules_to_save) or None,
        "bias": "none",
        "use_dora": config.dora,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": {name: _whole(alpha) for name, alpha in config.alpha_pattern.items()},
        "fan_in_fan_out": fan_in_fan_out,
    }
    write_json(directory, content, loaded)


def write_json(directory: Path, content: Mapping[str, Any], loaded: LoadedModel) -> None:
    """Write adapter_config.json: what an adapter is, and what it was trained on.

    Raises:
        RunError: the file cannot be written.
    """
    task_type, module = TASK_TYPES.get(loaded.head), loaded.module
    mapping = {"base_model_class": type(module).__name__, "parent_library": type(module).__module__}
    content = {
        **content,
        "task_type": task_type,
        "auto_mapping": None if task_type else mapping,
        "base_model_name_or_path": loaded.source,
        "revision": None,
        "inference_mode": True,
    }
    file = Path(directory) / CONFIG_FILE
    try:
        # Sorted, but not inside: of several patterns that match, the first counts.
        file.write_text(json.dumps(dict(sorted(content.items())), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {str(file)!r}: {error}. Free some space or choose another output.") from None


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read adapter_model.safetensors; an adapter name inside a key is left out.

    Raises:
        RunError: the file is missing, damaged, or a pickle.
    """
    directory = Path(directory)
    if not (directory / WEIGHTS_FILE).exists() and (directory / PICKLE_FILE).exists():
        raise RunError(
            f"{str(directory / PICKLE_FILE)!r} is a pickle, which can run code when it is read; only {WEIGHTS_FILE} is "
            "read. Convert it where you trust it: load it with PEFT and call save_pretrained(folder)."
        )
    tensors = read_tensors(directory / WEIGHTS_FILE)
    return {_without_adapter_name(key): tensor for key, tensor in tensors.items()}


def write_weights(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write adapter_model.safetensors, in float32."""
    save_tensors({key: tensor.float() for key, tensor in tensors.items()}, Path(directory) / WEIGHTS_FILE)


def lora_tensors(loaded: LoadedModel) -> dict[str, Tensor]:
    """Return what the file holds by PEFT's keys: A and B, DoRA's magnitudes, and whole modules.

    Those of a layer that started from its weight are copies, else they are the model's own.
    """
    tensors: dict[str, Tensor] = {}
    for path, layer in lora_layers(loaded.module).items():
        key_a, key_b = _keys(path, layer)
        tensors[key_a], tensors[key_b] = layer.lora_factors()
        if layer.lora_magnitude is not None:
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = layer.lora_magnitude
    return tensors | whole_tensors(loaded, PREFIX)


def whole_tensors(loaded: LoadedModel, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of the modules that train whole, by path after a prefix."""
    return {
        f"{prefix}{path}.{name}": tensor
        for path in whole_modules(loaded)
        for name, tensor in loaded.module.get_submodule(path).state_dict().items()
    }


@torch.no_grad()
def fill_lora(loaded: LoadedModel, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy an adapter's tensors into a prepared model, all or none.

    Args:
        loaded: the model.
        tensors: by PEFT's keys.
        origin: where they come from, for the message.

    Raises:
        BaseMismatch: keys are missing or unexpected, a shape differs, or the file holds another base embedding.
    """
    layers = lora_layers(loaded.module)
    targets = lora_tensors(loaded)
    copy_into(targets, _without_base(tensors, layers, origin), origin)
    for path, layer in layers.items():
        if layer.lora_a0 is None:
            continue
        (a, b), rank = (targets[key] for key in _keys(path, layer)), layer.lora_a.shape[0]
        layer.lora_a.copy_(a[:rank])
        layer.lora_a0.copy_(a[rank:])
        layer.lora_b.copy_(b[:, :rank])
        layer.lora_b0.copy_(b[:, rank:])


def _keys(path: str, layer: LoRALayer) -> tuple[str, str]:
    names = ("embedding_A", "embedding_B") if isinstance(layer, LoRAEmbedding) else ("A.weight", "B.weight")
    a, b = (f"{PREFIX}{path}.lora_{name}" for name in names)
    return a, b


def _without_base(tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module], origin: str) -> dict[str, Tensor]:
    """Leave out the base's own embeddings, which PEFT saves beside an adapted one."""
    kept = dict(tensors)
    for key in tensors:
        path = key.removeprefix(PREFIX).removesuffix(_BASE_WEIGHT)
        if not key.endswith(_BASE_WEIGHT) or path not in layers:
            continue
        stored, weight = kept.pop(key), layers[path].weight
        same = stored.shape == weight.shape
        if same and not weight.is_meta:
            same = torch.equal(stored.to(weight.dtype), weight.cpu())
        if not same:
            raise BaseMismatch(
                f"{origin} holds weights of {path!r} that differ from this base's: its vocabulary was extended, or it "
                "was trained on another base. Merge that adapter with PEFT and start from the merged model."
            )
    return kept


def target_modules(module: nn.Module, paths: Collection[str]) -> list[str] | str:
    """Return what makes PEFT adapt exactly the modules at `paths`, in the shortest form.

    Last components where they are enough, whole paths where some other module ends the same way, and a
    regular expression where even a whole path is the ending of another.
    """
    every = [path for path, _ in module.named_modules()]
    wanted = set(paths)
    for names in ({path.rpartition(".")[2] for path in wanted}, wanted):
        # A name matches by exact path or by its ending, so whole endings are looked up in one set.
        if {path for path in every if any(ending in names for ending in _endings(path))} == wanted:
            return sorted(names)
    return "|".join(re.escape(path) for path in sorted(wanted))


def modules_to_save(module: nn.Module, whole: Collection[str]) -> tuple[str, ...]:
    """Return PEFT's names of the modules at `whole`: last components where no other module ends so."""
    every = [path for path, _ in module.named_modules()]
    short = {path: path.rpartition(".")[2] for path in whole}
    unclear = {name for name in short.values() if any(p.endswith(name) and p not in whole for p in every)}
    return tuple(sorted({path if name in unclear else name for path, name in short.items()}))


def refuse_other_whole_modules(config: AdapterConfig, module: nn.Module, whole: Collection[str], origin: str) -> None:
    """Check that an adapter holds no whole modules beyond those that train whole here.

    Raises:
        RunError: names the first one.
    """
    for path, _ in module.named_modules():
        inside = any(path == name or path.startswith(f"{name}.") for name in whole)
        if matches_name(path, config.modules_to_save) and not inside:
            raise RunError(
                f"{origin} trains {path!r} whole (modules_to_save); here "
                + (f"only {', '.join(map(repr, sorted(whole)))} trains whole" if whole else "no module trains whole")
                + ". Merge that adapter with PEFT and start from the merged model."
            )


def _without_adapter_name(key: str) -> str:
    key = re.sub(r"\.lora_(A|B)\.[^.]+\.weight$", r".lora_\1.weight", key)
    return re.sub(r"\.lora_(embedding_A|embedding_B|magnitude_vector)(\.[^.]+){1,2}$", r".lora_\1", key)


def _whole(number: float) -> float:
    """Write a whole number as an integer, which is what PEFT declares alphas to be."""
    return int(number) if number == int(number) else number


def _endings(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _refuse_unsupported(content: Mapping[str, Any], file: Path) -> None:
    used = {
        key: value
        for key, value in content.items()
        if value and key not in _READ and key not in _WITHOUT_EFFECT and key not in ("bias", "init_lora_weights")
    }
    if content.get("bias", "none") != "none":
        used["bias"] = content["bias"]
    if content.get("init_lora_weights") not in _PLAIN_INITIALISATIONS:
        used["init_lora_weights"] = content["init_lora_weights"]
    if used:
        shown = ", ".join(f"{key}={value!r}" for key, value in sorted(used.items()))
        raise RunError(
            f"{str(file)!r} uses what ftengine's LoRA does not have: {shown}. "
            "Merge that adapter with PEFT and start from the merged model."
        )


def _refuse_malformed(content: Mapping[str, Any], file: Path) -> None:
    rank: Any = content.get("r")
    alpha, dropout = content.get("lora_alpha"), content.get("lora_dropout", 0)
    names, whole = content.get("target_modules"), content.get("modules_to_save") or []
    sound = {
        "r": _is_rank(rank),
        "lora_alpha": _is_number(alpha),
        "lora_dropout": _is_number(dropout) and 0 <= dropout < 1,
        "target_modules": bool(names) and (isinstance(names, str) or _are_names(names)),
        "modules_to_save": _are_names(whole),
        "rank_pattern": _is_pattern(content.get("rank_pattern") or {}, whole=True),
        "alpha_pattern": _is_pattern(content.get("alpha_pattern") or {}),
    }
    wrong = [f"{key}={content.get(key)!r}" for key, is_sound in sound.items() if not is_sound]
    if wrong:
        raise RunError(f"{str(file)!r} has no usable value for {', '.join(wrong)}; it must be as PEFT wrote it.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_rank(value: Any) -> bool:
    return _is_number(value) and value == int(value) and value >= 1


def _is_pattern(value: Any, whole: bool = False) -> bool:
    fits = _is_rank if whole else _is_number
    return isinstance(value, dict) and all(fits(number) for number in value.values())


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)
