"""A LoRA adapter in PEFT's format that servers apply as it was trained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine.api import Exported, Exporter, ExportSource, Runtime
from ftengine.errors import NoRuntime, NotExportable, json_of_file

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NOISE = 1e-3
"""Folding scales into B rounds at other places, which is all that differs; in float32."""

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank takes."""

MERGE = "Merge it: `ftengine export RUN --to transformers OUT`."
PAIR = re.compile(r"(?P<path>.+)\.lora_A\.weight")


USAGE = """from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")"""


class PeftExporter(Exporter):
    """The LoRA adapter in PEFT's format, of one rank and scale 1, for servers that ignore rsLoRA and patterns."""

    name = "peft"

    def check(self, source: ExportSource) -> None:
        """Refuse what no server takes: other methods, DoRA, modules that train whole, embeddings."""
        read_lora_config(source.trained)
        source_of_pairs(source.trained)

    def export(self, source: ExportSource, folder: Path) -> Exported:
        from ftengine.model import save_tensors

        config = read_lora_config(source.trained)
        folded, rank = folded_pairs(source.trained)
        names = {path: (f"{path}.lora_A.weight", f"{path}.lora_B.weight") for path in folded}
        tensors = {key: one for path, pair in folded.items() for key, one in zip(names[path], pair, strict=True)}
        save_tensors(tensors, folder / WEIGHTS)
        plain = {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
        text = json.dumps({**config, **plain, "lora_dropout": 0.0}, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        source.processor.save_pretrained(folder)
        served = next((one for one in VLLM_RANKS if one >= rank), None)
        return Exported(NOISE, {"rank": rank, "layers": len(folded), "vllm_max_lora_rank": served}, USAGE, "peft")

    @contextmanager
    def open(self, folder: Path, source: ExportSource) -> Iterator[Runtime]:
        """Open the adapter with PEFT, on the base."""
        try:
            from peft import PeftModel
        except ImportError:
            raise NoRuntime("PEFT is not installed: pip install peft.") from None
        loaded = source.load_base()
        loaded.module.float()
        module: Any = PeftModel.from_pretrained(loaded.module, folder)
        # transformers' `generate` of a PEFT model has the base's settings, as an adapter has none itself.
        module.generation_config = _as_measured(loaded.module.generation_config, source)
        loaded.module = module
        yield Runtime(model=loaded)


def _as_measured(settings: Any, source: ExportSource) -> Any:
    """Return generation settings of the base with what a server of an adapter is asked for: ends, no sampling, …"""
    from ftengine.model import measured_settings

    measured = measured_settings(settings.to_dict(), source.generation)
    if source.stop:
        measured["eos_token_id"] = sorted(source.stop)
    return type(settings).from_dict(measured)


def read_lora_config(adapter: Path) -> dict[str, Any]:
    """Return adapter_config.json of a LoRA that servers take (NotExportable says what stands against it)."""
    file = adapter / CONFIG
    if not file.is_file():
        raise NotExportable(f"{str(adapter)!r} holds no adapter of PEFT. {MERGE}")
    config = json_of_file(file)
    faults = {
        f"it is {config.get('peft_type')}, and servers take LoRA alone": config.get("peft_type") != "LORA",
        "it is DoRA, which servers refuse": config.get("use_dora"),
        f"modules train whole ({', '.join(config.get('modules_to_save') or ())}), which servers refuse": config.get(
            "modules_to_save"
        ),
    }
    if fault := next((text for text, there in faults.items() if there), None):
        raise NotExportable(f"the adapter in {str(adapter)!r} cannot be served: {fault}. {MERGE}")
    return config


def source_of_pairs(adapter: Path) -> list[str]:
    """Return the paths of the adapted layers (NotExportable: one of them is no linear layer)."""
    from safetensors import safe_open

    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        keys = list(file.keys())
    paths = sorted(match["path"] for key in keys if (match := PAIR.fullmatch(key)))
    known = {f"{path}.lora_{side}.weight" for path in paths for side in "AB"}
    if other := sorted(set(keys) - known):
        raise NotExportable(
            f"the adapter in {str(adapter)!r} cannot be served: {other[0]!r} is no part of a linear layer's update, "
            f"and servers take these alone. {MERGE}"
        )
    return paths


def folded_pairs(adapter: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], int]:
    """Return A (r, in) and B (out, r) of each layer, with its scale in B and zeros up to the highest rank, and that."""
    import torch

    from ftengine.model import read_tensors

    config, tensors = read_lora_config(adapter), read_tensors(adapter / WEIGHTS)
    paths = source_of_pairs(adapter)
    rank = max(tensors[f"{path}.lora_A.weight"].shape[0] for path in paths)
    pairs = {}
    for path in paths:
        a, b = (tensors[f"{path}.lora_{side}.weight"].float() for side in "AB")
        missing = rank - a.shape[0]
        b = b * scale_of(config, path, a.shape[0])
        pairs[path] = (torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing)))
    return pairs, rank


def scale_of(config: Mapping[str, Any], path: str, rank: int) -> float:
    """Return what a layer's update is multiplied by, as PEFT says it: alpha / r, or alpha / √r of rsLoRA."""
    name = path.removeprefix("base_model.model.")
    patterns = config.get("alpha_pattern") or {}
    alpha = next((one for key, one in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), config["lora_alpha"])
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
