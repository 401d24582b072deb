"""Everything that the result of a computation depends on, for the keys of caches."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor, nn

from ftengine.api import Component, LoadedModel, Strategy
from ftengine.chat.template_date import template_date
from ftengine.data.features import component_state, processor_state
from ftengine.engine.experiment import described
from ftengine.identity import folder_hash
from ftengine.parallel.arithmetic import computed_by
from ftengine.parallel.device import Device
from ftengine.run.environment import hardware
from ftengine.run.own_code import code_of

if TYPE_CHECKING:
    from ftengine.engine.prepared_data import LabelledTask


def dependencies(
    device: Device, labelled: LabelledTask, loaded: LoadedModel, components: Iterable[Component]
) -> list[Any] | None:
    """Return everything that decides what a model computes for examples on this machine, as JSON values.

    Args:
        components: further components whose code affects the result, besides loader, task and model.

    Returns:
        None where this is unknown: for components or models whose code is neither ftengine's nor that of a library
        it requires, for a task that holds a reference to the model, and for packed weights.
    """
    state, task, loader = _processor(loaded.processor), component_state(labelled.task), labelled.experiment.loader
    if loader.runs_code(labelled.recipe.model.source) is not None or not (state and task):
        return None
    parts = (loader, labelled.task, loaded.processor, *components, *loaded.inference_paths, *loaded.module.modules())
    code = code_of(type(part) for part in parts)
    model = _model(loaded)
    if code is None or model is None:
        return None
    return [
        [described(loader), model, state, loaded.max_length, task],
        [str(device.accelerator.device), device.precision.name, arithmetic()],
        [device.accelerator.num_processes, device.divides],
        [hardware(), computed_by(device.accelerator.device.type), code],
    ]


ARITHMETIC = re.compile(r"(ATEN|CUBLAS|CUDA|CUDNN|DNNL|GOMP|KMP|MKL|NVIDIA|OMP|ONEDNN|OPENBLAS|PYTORCH|TORCH)_")
"""How the variables of the environment begin that decide by which arithmetic libraries compute."""


def arithmetic() -> list[Any]:
    """Return the settings of libraries that change how results are rounded."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    variables = {name: value for name, value in sorted(os.environ.items()) if ARITHMETIC.match(name)}
    return [
        variables,
        [torch.get_float32_matmul_precision(), str(torch.get_default_dtype()), torch.backends.mkldnn.enabled],
        [torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32],
        [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()],
        [cuda.matmul.allow_bf16_reduced_precision_reduction, cuda.matmul.allow_fp16_reduced_precision_reduction],
    ]


def prepared_by(strategy: Strategy) -> list[Any]:
    """Return what a strategy changed in a base beyond parameters and buffers, such as the scale of an update."""
    if strategy.starts_from is None:
        return []
    files = folder_hash(Path(strategy.starts_from))
    return [[strategy.name, strategy.loading_options(), strategy.environment(), files]]


@torch.no_grad()
def _model(loaded: LoadedModel) -> list[Any] | None:
    """Return what identifies a model's computation: modules, settings and hashes of weights; None where unknown."""
    module: Any = loaded.module
    digest = xxhash.xxh3_128()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
            return None  # weights that are packed in a way of their own
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu().numpy().data)
    settings: list[Any] = []
    for name in ("config", "generation_config"):
        own: Any = getattr(module, name, None)
        content = own.to_dict() if hasattr(own, "to_dict") else {}
        settings.append({key: str(value) for key, value in sorted(content.items()) if key != "_name_or_path"})
        settings.append(str(getattr(own, "_attn_implementation", None)))
    return [repr(module), settings, digest.hexdigest()]


def _processor(processor: Any) -> Any:
    """Return what identifies a tokenizer or image processor; None where it cannot be serialised."""
    state = processor_state(processor)
    if state is None and hasattr(processor, "to_dict"):
        settings = {key: str(value) for key, value in sorted(processor.to_dict().items())}
        day = str(template_date(processor))
        return [type(processor).__module__, type(processor).__qualname__, settings, day]
    return state
