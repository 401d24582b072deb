"""Trainable parameters: what trains, how it is grouped, how it is written and identified.

requires_grad is the only truth; everything here derives from it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ftengine.errors import BaseMismatch, RunError

TRAINED_FILE = "trained.safetensors"


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with requires_grad by name, shared ones once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return what training changes: trainable parameters, and buffers that move with them.

    Buffers (BatchNorm statistics) are taken from modules that hold a trainable parameter, by the same
    rule that decides whether they move at all.
    """
    tensors: dict[str, Tensor] = dict(trainable(module))
    for prefix, child in module.named_modules():
        if any(p.requires_grad for p in child.parameters(recurse=False)):
            persistent = child.state_dict(prefix=f"{prefix}." if prefix else "").keys()
            for name, buffer in child.named_buffers(prefix=prefix, recurse=False):
                if name in persistent:
                    tensors[name] = buffer
    return tensors


def count(module: nn.Module) -> tuple[int, int]:
    """Return (trainable, total) numbers of parameters; packed quantised ones count as they are stored."""
    total = sum(p.numel() for p in module.parameters())
    return sum(p.numel() for p in trainable(module).values()), total


def default_param_groups(module: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Group trainable parameters for the optimiser: weight decay on those that `decayed` names, none on the others."""
    names, parameters = decayed(module), trainable(module)
    groups = [
        {
            "params": [p for name, p in parameters.items() if (name in names) is wanted],
            "lr": learning_rate,
            "weight_decay": weight_decay if wanted else 0.0,
        }
        for wanted in (True, False)
    ]
    return [group for group in groups if group["params"]]


def decayed(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that weight decay applies to: matrices that multiply activations.

    Left alone are vectors (biases, norms, layer scales), every parameter of a normalisation layer, whatever is called a
    bias (T5's table of relative positions, the biases of a mixture's experts), single tokens and position tables that
    are held as (1, …) parameters (a vision model's class token), and what the model itself names in
    `no_weight_decay()`, as timm's do. Decay would pull those towards a zero that means nothing.

    transformers' Trainer leaves out biases and normalisation layers and decays everything else, also class tokens;
    torch's optimisers decay whatever they are given. Embeddings are decayed as in transformers, and so is a fresh head.
    """
    named = getattr(module, "no_weight_decay", None)
    spared = set(named()) if callable(named) else set()
    first = {name for name, _ in module.named_parameters()}  # a shared one goes by its first name
    names = set()
    for path, part in module.named_modules():
        if _normalises(part):
            continue
        for own, parameter in part.named_parameters(recurse=False):
            name = f"{path}.{own}" if path else own
            token = parameter.ndim >= 3 and len(parameter) == 1 and own not in ("weight", "in_proj_weight")
            if parameter.ndim > 1 and not token and "bias" not in name.lower() and not {name, own} & spared:
                names.add(name)
    return frozenset(names & first)


def _normalises(part: nn.Module) -> bool:
    """Say whether a module is a normalisation layer; most architectures have a class of their own."""
    return bool(re.search(r"norm(alization)?([123]d)?$", type(part).__name__, re.IGNORECASE))


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors by name as safetensors: on the CPU, contiguous, none sharing memory with another.

    Raises:
        RunError: the file cannot be written (disk full, no permission).
    """
    plain = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(plain, file, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write {str(file)!r}: {error}. Free some space or choose another output.") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        RunError: the file is missing, truncated, or of another format.
    """
    try:
        with safe_open(file, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise RunError(f"{str(file)!r} is missing.") from None
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{str(file)!r} is no readable safetensors file: {error}. Pickled weights are not read; "
            "convert them to safetensors first."
        ) from None


def save_trained(module: nn.Module, directory: Path) -> None:
    """Write what training changes (`state_tensors`), by name, to `trained.safetensors` in `directory`."""
    save_tensors(state_tensors(module), Path(directory) / TRAINED_FILE)


def load_trained(module: nn.Module, directory: Path) -> None:
    """Read what `save_trained` wrote into a module in which the same parameters train.

    Raises:
        BaseMismatch: keys are missing or unexpected, or a shape differs.
    """
    file = Path(directory) / TRAINED_FILE
    copy_into(state_tensors(module), read_tensors(file), str(file))


@torch.no_grad()
def copy_into(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy tensors into parameters of the same names, all or none.

    Args:
        parameters: targets by name; each keeps its dtype and device.
        tensors: sources by name.
        origin: where the tensors come from, for the message.

    Raises:
        BaseMismatch: keys are missing or unexpected, or a shape differs.
    """
    missing, unexpected = parameters.keys() - tensors.keys(), tensors.keys() - parameters.keys()
    if missing or unexpected:
        raise BaseMismatch(
            f"{origin} does not fit this model: {len(missing)} keys missing{_some(missing)}, "
            f"{len(unexpected)} unexpected{_some(unexpected)}. It was trained with another base or other options."
        )
    wrong = {n: (tuple(tensors[n].shape), tuple(p.shape)) for n, p in parameters.items() if tensors[n].shape != p.shape}
    if wrong:
        name, (found, expected) = next(iter(wrong.items()))
        raise BaseMismatch(
            f"{origin} does not fit this model: {name!r} has shape {found}, the model expects {expected}"
            f" ({len(wrong)} of {len(parameters)} tensors differ)."
        )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""


@torch.no_grad()
def fingerprint_weights(module: nn.Module, exclude: Iterable[str] = ()) -> str:
    """Return a hash that identifies base weights, whatever dtype they were loaded in.

    Names, shapes and up to 256 evenly spaced elements of each tensor, rounded to bfloat16, enter the
    hash: reading every element of a large model would cost minutes, and weights that differ at all
    differ nearly everywhere.

    Args:
        module: the model before a strategy touched it.
        exclude: names of modules initialised afresh, which differ from run to run.
    """
    digest = hashlib.sha256()
    skipped = tuple(f"{name}." for name in exclude)
    for name, tensor in sorted(module.named_parameters()):
        if name.startswith(skipped):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // 256)
        sample = flat[::step][:256].cpu()
        if sample.is_floating_point():
            sample = sample.to(torch.bfloat16).view(torch.int16)
        digest.update(sample.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def fingerprint_processor(processor: Any) -> str:
    """Return a hash of a tokenizer's vocabulary and chat template (or of a processor's settings)."""
    digest = hashlib.sha256()
    if hasattr(processor, "get_vocab"):
        for token, index in sorted(processor.get_vocab().items()):
            digest.update(f"{token}\0{index}\0".encode("utf-8", "surrogatepass"))
        digest.update(str(getattr(processor, "chat_template", None)).encode())
    elif hasattr(processor, "to_dict"):
        digest.update(repr(sorted(processor.to_dict().items(), key=lambda item: item[0])).encode())
    return digest.hexdigest()[:32]


def save_model(module: nn.Module, processor: Any, directory: Path) -> None:
    """Write a whole model as its ecosystem does: a transformers folder, safetensors only, processor beside it.

    A module without `save_pretrained` is written as `model.safetensors`, its state by name.

    Raises:
        RunError: it cannot be written (disk full, no permission).
    """
    directory = Path(directory)
    try:
        with _quiet_transformers(module):
            if hasattr(module, "save_pretrained"):
                _save_pretrained(module, directory)
            else:
                save_tensors(module.state_dict(), directory / "model.safetensors")
            if hasattr(processor, "save_pretrained"):
                processor.save_pretrained(directory)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"cannot write the model to {str(directory)!r}: {error}. Free some space or choose another output."
        ) from None


def _save_pretrained(module: Any, directory: Path) -> None:
    generation: Any = getattr(module, "generation_config", None)
    try:
        if generation is not None:
            generation.validate(strict=True)
    except ValueError:
        # Published models contradict themselves here (a temperature without sampling), and transformers
        # refuses to save what it considers changed. The settings are passed on as they were.
        module.generation_config = type(generation)()
        try:
            module.save_pretrained(directory)
        finally:
            module.generation_config = generation
        generation.to_json_file(directory / "generation_config.json")
    else:
        module.save_pretrained(directory)


@contextmanager
def _quiet_transformers(module: nn.Module) -> Iterator[None]:
    """Hold back the progress bar that transformers draws while it saves."""
    if not hasattr(module, "save_pretrained"):
        yield
        return
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
