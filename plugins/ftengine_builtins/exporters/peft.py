"""LoRA adapters in PEFT's format with a plain rank and scale, which servers support."""

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
"""Allowed mean difference of log-probabilities in float32: scales folded into B round at other places."""

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's --max-lora-rank allows."""

MERGE = "Merge it: `ftengine export RUN --to transformers OUT`."
EXPERTS = (
    "which vLLM reads as a pair for each expert (Qwen3-MoE) or as stacks (gpt-oss, Qwen3.5), and others in a wrong "
    "order, llama.cpp's converter as a pair for each expert, and SGLang not at all, without a message"
)
"""Which servers take the updates of experts, and how."""
PAIR = re.compile(r"(?P<path>.+)\.lora_A\.weight")


USAGE = """from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")"""


class PeftExporter(Exporter):
    """The LoRA adapter in PEFT's format, with one rank and scale 1, for servers that ignore rsLoRA and patterns."""

    name = "peft"

    def check(self, source: ExportSource) -> None:
        """Refuse adapters that servers do not support: other methods, DoRA, fully trained modules, embeddings."""
        read_lora_config(source.trained)
        source_of_pairs(source.trained)

    def export(self, source: ExportSource, folder: Path) -> Exported:
        from ftengine.model import save_tensors

        config = read_lora_config(source.trained)
        folded, rank = folded_pairs(source.trained)
        names = {path: (f"{path}.lora_A.weight", f"{path}.lora_B.weight") for path in folded}
        tensors = {key: tensor for path, pair in folded.items() for key, tensor in zip(names[path], pair, strict=True)}
        save_tensors(tensors, folder / WEIGHTS)
        plain = {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
        text = json.dumps({**config, **plain, "lora_dropout": 0.0}, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        source.processor.save_pretrained(folder)
        served = next((limit for limit in VLLM_RANKS if limit >= rank), None)
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
        # An adapter has no generation settings; transformers' `generate` uses those of the base.
        module.generation_config = _as_measured(loaded.module.generation_config, source)
        loaded.module = module
        yield Runtime(model=loaded)


def _as_measured(settings: Any, source: ExportSource) -> Any:
    """Return the base's generation settings with the measured ones: end tokens, greedy decoding, …"""
    from ftengine.generation import measured_settings

    measured = measured_settings(settings.to_dict(), source.generation)
    if source.stop:
        measured["eos_token_id"] = sorted(source.stop)
    return type(settings).from_dict(measured)


def read_lora_config(adapter: Path) -> dict[str, Any]:
    """Return adapter_config.json of a LoRA (NotExportable: servers do not support it, with the reason)."""
    file = adapter / CONFIG
    if not file.is_file():
        raise NotExportable(f"{str(adapter)!r} has no {CONFIG}, so it is not a PEFT adapter. {MERGE}")
    config = json_of_file(file)
    parameters = config.get("target_parameters") or ()
    faults = {
        f"it has updates of experts ({', '.join(parameters)}), {EXPERTS}": parameters,
        f"it is {config.get('peft_type')}, but servers support only LoRA": config.get("peft_type") != "LORA",
        "it is DoRA, which servers do not support": config.get("use_dora"),
        f"servers do not support its modules_to_save ({', '.join(config.get('modules_to_save') or ())})": config.get(
            "modules_to_save"
        ),
    }
    if fault := next((text for text, there in faults.items() if there), None):
        raise NotExportable(f"the adapter in {str(adapter)!r} cannot be served: {fault}. {MERGE}")
    return config


def source_of_pairs(adapter: Path) -> list[str]:
    """Return the paths of the adapted layers (NotExportable: one is not a linear layer)."""
    from safetensors import safe_open

    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        keys = list(file.keys())
    paths = sorted(match["path"] for key in keys if (match := PAIR.fullmatch(key)))
    expected = {f"{path}.lora_{side}.weight" for path in paths for side in "AB"}
    if other := sorted(set(keys) - expected):
        raise NotExportable(
            f"the adapter in {str(adapter)!r} cannot be served: {other[0]!r} does not belong to a linear layer, "
            f"and servers support only these. {MERGE}"
        )
    return paths


def folded_pairs(adapter: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], int]:
    """Return A (r, in) and B (out, r) of each layer, and r: scales are folded into B, ranks padded with zeros to r."""
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
    """Return the scale of a layer's update in PEFT: alpha / r, or alpha / √r for rsLoRA."""
    name = path.removeprefix("base_model.model.")
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), config["lora_alpha"]
    )
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
