"""The trainable parts of a model, all derived from requires_grad."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with requires_grad by name, shared ones once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training changes: trainable parameters, and buffers that change with them.

    Buffers (BatchNorm statistics) are taken from modules that hold a trainable parameter, or compute a weight from one
    (spectral norm): in no others do they move.
    """
    tensors: dict[str, Tensor] = dict(trainable(module))
    owners = computed_from(module)
    for prefix, child in module.named_modules():
        if any(p.requires_grad for p in owners.get(child, child).parameters(recurse=False)):
            persistent = child.state_dict(prefix=f"{prefix}." if prefix else "").keys()
            for name, buffer in child.named_buffers(prefix=prefix, recurse=False):
                if name in persistent:
                    tensors[name] = buffer
    return tensors


def computed_from(module: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return the parts of torch's parametrizations, each with the module that holds the parameters it reads."""
    lists = [part for part in module.modules() if isinstance(part, ParametrizationList)]
    return {inner: holder for holder in lists for part in holder for inner in part.modules()}


def frozen_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training leaves unchanged, by name: all but `state_tensors` and transient buffers."""
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    for prefix, child in module.named_modules():
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                tensors[f"{prefix}.{name}" if prefix else name] = buffer
    moving = state_tensors(module).keys()
    return {name: tensor for name, tensor in tensors.items() if name not in moving}


def parameter_sizes(module: nn.Module) -> dict[str, int]:
    """Return the number of weights in each parameter, by name, shared ones once.

    A linear layer's integer weight is packed: it counts as inputs times outputs of the layer.
    """
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and not layer.weight.is_floating_point():
            name = f"{path}.weight" if path else "weight"
            sizes |= {name: layer.in_features * layer.out_features} if name in sizes else {}
    return sizes


def count(module: nn.Module) -> tuple[int, int]:
    """Return (trainable, total) numbers of parameters; packed ones count as the weights that they hold."""
    sizes = parameter_sizes(module)
    return sum(sizes[name] for name in trainable(module)), sum(sizes.values())


def default_param_groups(
    module: nn.Module, learning_rate: float, weight_decay: float, *, decays: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Group trainable parameters for the optimiser: with weight decay those named in `decays`, the others without."""
    names, parameters = decayed(module) if decays is None else decays, trainable(module)
    groups = [
        {
            "params": [p for name, p in parameters.items() if (name in names) is decay],
            "lr": learning_rate,
            "weight_decay": weight_decay if decay else 0.0,
        }
        for decay in (True, False)
    ]
    return [group for group in groups if group["params"]]


def decayed(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that weight decay applies to: matrices that multiply activations.

    Excluded are vectors (biases, norms, layer scales), every parameter of a normalisation layer, whatever is called a
    bias (T5's table of relative positions, the biases of a mixture's experts), single tokens and position tables of
    shape (1, …) (a vision model's class token), and what the model itself names in `no_weight_decay()`, as timm's do:
    for these, zero has no meaning.

    transformers' Trainer excludes biases and normalisation layers and decays everything else, class tokens included;
    torch's optimisers decay all that they are given. Embeddings and a fresh head are decayed, as in transformers.
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
    """Return whether a module is a normalisation layer; most architectures have a class of their own."""
    return bool(re.search(r"norm(alization)?([123]d)?$", type(part).__name__, re.IGNORECASE))
