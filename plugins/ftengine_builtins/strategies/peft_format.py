"""PEFT's files: adapter_config.json and adapter_model.safetensors (PEFT 0.19 to 0.21), and LoRA's content of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field, PlainSerializer
from torch import Tensor, nn

from ftengine.api import LoadedModel
from ftengine.errors import BaseMismatch, RunError
from ftengine.model import TRAINED_FILE, copy_into, matches_name, read_tensors, save_tensors
from ftengine_builtins.strategies.adapter_config import (
    CONFIG_FILE,
    OWN_CONFIG_FILE,
    AdapterFile,
    is_own,
    read_content,
    refuse_unsupported,
    write_json,
)
from ftengine_builtins.strategies.expert_layers import expert_layers, expert_modules, lora_routers
from ftengine_builtins.strategies.lora_layers import LoRAEmbedding, LoRALayer, lora_layers
from ftengine_builtins.strategies.targets import inside, whole_modules

if TYPE_CHECKING:
    from typing_extensions import Self

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


class AdapterConfig(AdapterFile):
    """The content of PEFT's adapter_config.json."""

    peft_type: ClassVar[str]
    advice: ClassVar[str]
    """What to do about an adapter that uses more than this class knows."""
    without_effect: ClassVar[frozenset[str]] = frozenset(
        ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision")
    ) | {"task_type"}
    """Keys that say nothing about what the adapter computes."""
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Keys that do, with the values under which it is what ftengine computes."""

    modules_to_save: list[str] | None = None

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read adapter_config.json (RunError: it is missing, of another type, or uses unsupported options)."""
        content, file = read_content(directory, "a PEFT")
        kind = content.get("peft_type") if isinstance(content, dict) else type(content).__name__
        if kind != cls.peft_type:
            raise RunError(f"{str(file)!r} describes {kind!r}, not {cls.peft_type!r}.")
        refuse_unsupported(cls.unsupported(content), file, cls.advice)
        return cls.parse(content, file, "PEFT")

    @classmethod
    def unsupported(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options in a file that this class does not know, or that PEFT computes differently."""
        known = {field.alias or name for name, field in cls.model_fields.items()} | cls.without_effect
        return {
            key: value
            for key, value in content.items()
            if key not in known and not any(_same(value, fine) for fine in cls.harmless.get(key, UNSET))
        }

    def write(self, directory: Path, loaded: LoadedModel, own: bool = False, **others: Any) -> None:
        """Write adapter_config.json (RunError): the adapter, its base, and `others` that ftengine does not read.

        PEFT and transformers build a head from the base's config, which lacks the labels' names. So the model's config
        goes into a folder of its own (`LABELLED`): beside the adapter it would make transformers take the folder for a
        whole model.

        Args:
            own: whether PEFT cannot run the adapter; the file then has another name.
        """
        task_type, module = TASK_TYPES.get(loaded.head), loaded.module
        mapping = {"base_model_class": type(module).__name__, "parent_library": type(module).__module__}
        content = {
            **self.model_dump(by_alias=True),
            **others,
            "peft_type": self.peft_type,
            "task_type": task_type,
            "auto_mapping": None if task_type else mapping,
            "base_model_name_or_path": loaded.source,
            "revision": None,
            "inference_mode": True,
        }
        write_json(Path(directory) / (OWN_CONFIG_FILE if own else CONFIG_FILE), content)
        config = getattr(module, "config", None)
        if loaded.labels is not None and not own and hasattr(config, "id2label"):
            config.save_pretrained(Path(directory) / LABELLED)


LABELLED = "config"
"""The folder beside an adapter for labels that has the model's config.json, with their names."""

UNSET: tuple[Any, ...] = (None, False, 0.0, "", [], {})
"""Values of options that are not used, of keys that are not known. A number of a layer or a token may be 0."""


def _same(value: Any, other: Any) -> bool:
    """Return whether two JSON values are the same; 0 and false differ."""
    return type(value) is type(other) and value == other


def _whole(number: float) -> float:
    """Return a whole number as an integer, which is PEFT's type of alphas."""
    return int(number) if number == int(number) else number


Name = Annotated[str, Field(min_length=1)]
Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, PlainSerializer(_whole)]


class LoRAFile(AdapterConfig):
    """The content of adapter_config.json for LoRA."""

    peft_type = "LORA"
    advice = "Merge that adapter with PEFT and start from the merged model."
    without_effect = AdapterConfig.without_effect | {
        *("fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
        *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),  # read only by their initialisations
    }
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "bias": (None, "none"),
        # Other initialisations change the base weights, so the adapter alone does not say what was trained.
        "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva", "mica"),
        # Of PEFT's settings of a variant, an empty mapping means its defaults, not that it is off.
        **dict.fromkeys(("arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "velora_config"), (None,)),
        "alora_invocation_tokens": (None,),
    }

    rank: Rank = Field(alias="r")
    alpha: Alpha = Field(alias="lora_alpha")
    dropout: float = Field(0.0, alias="lora_dropout", ge=0, lt=1)
    rslora: bool = Field(False, alias="use_rslora")
    targets: Name | list[Name] = Field([], alias="target_modules")
    parameters: list[Name] | None = Field(None, alias="target_parameters")
    dora: bool = Field(False, alias="use_dora")
    rank_pattern: dict[str, Rank] = Field({})
    alpha_pattern: dict[str, Alpha] = Field({})

    @classmethod
    def parse(cls, content: Mapping[str, Any], file: Path, library: str) -> Self:
        """Return a file's content; `targets` takes in the parameters, where a layer stands for its weight."""
        found = super().parse(content, file, library)
        # A bare name is that of an experts' parameter there, and would be a dense layer's as a target.
        names = [n.removesuffix(".weight") if "." in n else f"experts.{n}" for n in found.parameters or ()]
        if not names and not found.targets:
            given = f"target_modules={content.get('target_modules')!r}"
            raise RunError(f"{str(file)!r}: {given} and no target_parameters; it must be as {library} wrote it.")
        if isinstance(found.targets, str):
            any_of = "|".join([found.targets, *(rf"(?:.*\.)?{re.escape(name)}" for name in names)])
            return found.model_copy(update={"targets": any_of if names else found.targets})
        return found.model_copy(update={"targets": [*found.targets, *names]})


SHARED = ("rank", "alpha", "targets", "rslora", "dora", "rank_pattern", "alpha_pattern")
"""What an adapter's own config decides about a model that is prepared for it."""


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read adapter_model.safetensors without adapter names in keys (RunError: missing, damaged, or a pickle)."""
    if is_own(directory):
        return read_tensors(directory / TRAINED_FILE)
    if not (directory / WEIGHTS_FILE).exists() and (directory / PICKLE_FILE).exists():
        raise RunError(
            f"{str(directory / PICKLE_FILE)!r} is a pickle, which can run code when it is read; only {WEIGHTS_FILE} is "
            "read. Convert it where you trust it: load it with PEFT and call save_pretrained(folder)."
        )
    named: dict[str, Tensor] = {}
    for key, tensor in read_tensors(directory / WEIGHTS_FILE).items():
        if (name := _without_adapter_name(key)) in named:
            raise RunError(f"{str(directory / WEIGHTS_FILE)!r} holds two adapters, such as in {key!r}. Save one alone.")
        named[name] = tensor
    return named


def write_weights(directory: Path, tensors: Mapping[str, Tensor], own: bool = False) -> None:
    """Write adapter_model.safetensors, in float32; under another name if PEFT cannot run it (`own`)."""
    file = Path(directory) / (TRAINED_FILE if own else WEIGHTS_FILE)
    save_tensors({key: tensor.float() for key, tensor in tensors.items()}, file)


def lora_tensors(loaded: LoadedModel) -> dict[str, Tensor]:
    """Return the file's tensors by PEFT's keys: A and B, DoRA's magnitudes, and whole modules.

    Tensors of a layer that started from its weight are copies, others the model's own.
    """
    tensors: dict[str, Tensor] = {}
    for path, layer in lora_layers(loaded.module).items():
        key_a, key_b = _keys(path, layer)
        tensors[key_a], tensors[key_b] = layer.lora_factors()
        if layer.lora_magnitude is not None:
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = layer.lora_magnitude
    for key, a, b in _expert_pairs(loaded.module):
        count, _, rank = b.shape
        stacked = a.expand(count, rank, a.shape[-1])
        tensors[f"{key}.lora_A.weight"] = stacked.reshape(count * rank, -1)
        tensors[f"{key}.lora_B.weight"] = b.permute(1, 2, 0).reshape(-1, rank * count)
    for path, router in lora_routers(loaded.module).items():
        tensors[f"{PREFIX}{path}.lora_A.weight"], tensors[f"{PREFIX}{path}.lora_B.weight"] = (
            router.lora_a,
            router.lora_b,
        )
    return tensors | whole_tensors(loaded, PREFIX)


def _expert_pairs(module: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the key of each parameter of experts, without its ending, with A and B.

    PEFT wraps the module once for each parameter, so that the last of them is the outermost. It stores A as
    (E · r, in) and B as (out, r · E), in which the expert runs fastest.
    """
    for path, part in expert_layers(module).items():
        for depth, name in enumerate(reversed(part.lora_names)):
            yield (f"{PREFIX}{path}" + ".base_layer" * depth, *part.lora_factors(name))


def whole_tensors(loaded: LoadedModel, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of the modules that train whole, by path after a prefix."""
    return {
        f"{prefix}{path}.{name}": tensor
        for path in whole_modules(loaded)
        for name, tensor in loaded.module.get_submodule(path).state_dict().items()
    }


@torch.no_grad()
def fill_lora(loaded: LoadedModel, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy an adapter's tensors, by PEFT's keys, into a prepared model, all or none; `origin` is for the message.

    Other keys or shapes, and another base embedding, are refused (BaseMismatch).
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
    for key, a, b in _expert_pairs(loaded.module):
        count, out, rank = b.shape
        stacked = targets[f"{key}.lora_A.weight"].view(count, rank, -1)
        if a.dim() == 2 and not (stacked == stacked[0]).all():
            raise BaseMismatch(
                f"{origin} has an A for each expert of {key.removeprefix(PREFIX)!r}, and strategy.expert_a is "
                "'shared'. Set strategy.expert_a=own."
            )
        a.copy_(stacked[0] if a.dim() == 2 else stacked)
        b.copy_(targets[f"{key}.lora_B.weight"].view(out, rank, count).permute(2, 0, 1))


def _keys(path: str, layer: LoRALayer) -> tuple[str, str]:
    a, b = ("embedding_A", "embedding_B") if isinstance(layer, LoRAEmbedding) else ("A.weight", "B.weight")
    return f"{PREFIX}{path}.lora_{a}", f"{PREFIX}{path}.lora_{b}"


def _without_base(tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module], origin: str) -> dict[str, Tensor]:
    """Leave out the base's own embeddings, which PEFT saves beside an adapted one."""
    kept = dict(tensors)
    for key in tensors:
        path = key.removeprefix(PREFIX).removesuffix(_BASE_WEIGHT)
        if not key.endswith(_BASE_WEIGHT) or path not in layers:
            continue
        stored, weight = kept.pop(key), layers[path].weight
        same = stored.shape == weight.shape if weight.is_meta else torch.equal(stored.to(weight.dtype), weight.cpu())
        if not same:
            raise BaseMismatch(
                f"{origin} holds weights of {path!r} that differ from this base's: its vocabulary was extended, or it "
                "was trained on another base. Merge that adapter with PEFT and start from the merged model."
            )
    return kept


CONVERTED = frozenset({"gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"})
"""Names of modules that PEFT takes for experts' in a model that has any (`_MOE_TARGET_MODULE_MAPPING`)."""


def targets_of(module: nn.Module, paths: Collection[str]) -> dict[str, Any]:
    """Return the fields of a file for LoRA layers at `paths`, and for the experts and routers that have updates.

    In a model with experts, PEFT takes names such as `gate_proj` for experts. Other layers with these names are
    therefore listed as parameters.
    """
    mixture = bool(expert_modules(module))
    hidden = {path for path in paths if mixture and path.rpartition(".")[2] in CONVERTED}
    named = [f"{path}.{name}" for path, part in expert_layers(module).items() for name in part.lora_names]
    named += [f"{path}.weight" for path in (*lora_routers(module), *hidden)]
    plain = {path for path in paths if path not in hidden}
    every = [name for name, _ in module.named_parameters() if ".lora_" not in name]
    return {
        "targets": target_modules(module, plain) if plain else [],
        "parameters": (_names_of(every, named) or sorted(named)) if named else None,
    }


def target_modules(module: nn.Module, paths: Collection[str]) -> list[str] | str:
    """Return PEFT's target_modules for exactly the modules at `paths`, in the shortest form.

    Last components if they are unambiguous, else whole paths, else a regular expression (if a whole path is the ending
    of another).
    """
    names = _names_of([path for path, _ in module.named_modules()], paths)
    return "|".join(re.escape(path) for path in sorted(paths)) if names is None else names


def _names_of(every: Collection[str], paths: Collection[str]) -> list[str] | None:
    """Return the shortest names by which PEFT finds exactly `paths` of `every` path; None if there are none."""
    endings = {path: _endings(path) for path in every}
    wanted = set(paths)
    for names in ({path.rpartition(".")[2] for path in wanted}, wanted):
        # A name matches by exact path or by its ending, so whole endings are looked up in one set.
        if {path for path, ends in endings.items() if not names.isdisjoint(ends)} == wanted:
            return sorted(names)
    return None


def modules_to_save(loaded: LoadedModel) -> list[str] | None:
    """Return PEFT's modules_to_save: last components if they are unambiguous, else whole paths."""
    whole, every = whole_modules(loaded), [path for path, _ in loaded.module.named_modules()]
    short = {path: path.rpartition(".")[2] for path in whole}
    unclear = {name for name in short.values() if any(p.endswith(name) and p not in whole for p in every)}
    return sorted({path if name in unclear else name for path, name in short.items()}) or None


def refuse_other_whole_modules(config: LoRAFile, loaded: LoadedModel, origin: str) -> None:
    """Refuse an adapter with whole modules that do not train whole here (RunError, which names one)."""
    whole = whole_modules(loaded)
    for path, _ in loaded.module.named_modules():
        if matches_name(path, config.modules_to_save or ()) and not inside(path, whole):
            ours = f"only {', '.join(map(repr, sorted(whole)))}" if whole else "no module"
            raise RunError(
                f"{origin} trains {path!r} whole (modules_to_save); here {ours} trains whole. {config.advice}"
            )


def _without_adapter_name(key: str) -> str:
    key = re.sub(r"\.lora_(A|B)\.[^.]+\.weight$", r".lora_\1.weight", key)
    return re.sub(r"\.lora_(embedding_A|embedding_B|magnitude_vector)(\.[^.]+){1,2}$", r".lora_\1", key)


def _endings(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]
