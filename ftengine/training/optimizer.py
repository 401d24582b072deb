"""The optimiser of a run: made by its component, its state written as tensors and JSON, its size in memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import Optimizer
from ftengine.errors import PluginError, RunError
from ftengine.plugins.attribution import contract_error, named

ADAM_BYTES = 8
"""A parameter's state where it cannot be told before training: two float32 moments, as Adam keeps them."""

SETTINGS = ("lr", "weight_decay")
"""Keys of a group that an optimiser has to go by as they are given."""

Groups = list[dict[str, Any]]


def build_optimizer(component: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    """Build the optimiser of parameter groups.

    Raises:
        PluginError: it is no torch optimiser, leaves out a parameter of the groups, or has one under other settings.
    """
    wanted = {parameter: group for group in groups for parameter in group["params"]}
    optimizer = component.build(groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise contract_error(component, "build", optimizer, "a torch.optim.Optimizer")
    built = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    if left := len(wanted.keys() - built.keys()):
        raise PluginError(
            f"{named(component)} leaves {left:,} of {len(wanted):,} parameters out: the groups that it is given must "
            "all be in the optimiser that it returns."
        )
    for parameter, group in wanted.items():
        for key in (one for one in SETTINGS if one in group):
            if float(actual := built[parameter].get(key, math.nan)) != float(group[key]):
                raise PluginError(
                    f"{named(component)} has a parameter of shape {tuple(parameter.shape)} under {key} {actual:g}, and "
                    f"the group that it was given with has {group[key]:g}: the optimiser must be built of the groups "
                    "as they are given, each with its own learning rate and weight decay."
                )
    return optimizer


def optimizer_bytes(component: Optimizer, groups: Groups) -> int:
    """Return the bytes of an optimiser's state, by a step on the meta device, where nothing is computed.

    One parameter of each shape in a group stands for all of them. State that cannot be made there is counted as Adam's.
    """
    alike = [_by_shape(group["params"]) for group in groups]
    copies = [{**group, "params": [_on_meta(one) for one in kinds]} for group, kinds in zip(groups, alike, strict=True)]
    times = [count for kinds in alike for count in kinds.values()]
    parameters = [parameter for group in copies for parameter in group["params"]]
    optimizer = build_optimizer(component, copies)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
        # Some ask for numbers, or have kernels for real devices alone; most have made their state by then.
        with suppress(Exception):
            optimizer.step()
        for parameter in group["params"]:
            parameter.grad = None
    state = (optimizer.state.get(parameter) for parameter in parameters)
    return sum(
        count * (sum(tensor.nbytes for tensor in _tensors(kept)) if kept is not None else x.numel() * ADAM_BYTES)
        for x, kept, count in zip(parameters, state, times, strict=True)
    )


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimiser's state: tensors by "PARAMETER|KEY", and everything else as JSON, which names them.

    Raises:
        PluginError: the state of a parameter holds what is neither tensor, number nor text.
    """
    tensors: dict[str, Tensor] = {}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    state = {}
    for parameter, kept in optimizer.state.items():
        if (name := names.get(id(parameter))) is None:
            what = "a tensor" if isinstance(parameter, Tensor) else repr(parameter)
            raise PluginError(
                f"the optimiser keeps state of {what}, which is not a parameter of the model; a checkpoint holds the "
                "state of parameters and of groups. Set train.optimizer to another."
            )
        state[name] = {key: _pack(value, f"{name}|{key}", tensors) for key, value in kept.items()}
    groups = []
    for i, group in enumerate(optimizer.param_groups):
        own: dict[str, Any] = {}
        for key, value in group.items():
            packed: dict[str, Tensor] = {}
            with suppress(PluginError):  # what cannot be written is an option, such as a function: the recipe makes it
                if key != "params":
                    own[key] = _pack(value, f"{i}||{key}", packed)
                    tensors |= packed
        groups.append(own)
    return tensors, {"state": state, "groups": groups}


def restore_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> None:
    """Set what `optimizer_state` returned.

    Raises:
        RunError: the state is of other parameters than those that train.
    """
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    by_name = {name: parameter for name, parameter in module.named_parameters() if parameter in groups}
    for name, kept in content["state"].items():
        if name not in by_name:
            raise RunError(
                f"the checkpoint holds optimiser state for {name!r}, which is not trainable in this model. Restore the "
                "versions and plugins that it was made with, or start a new run with --set output=DIR."
            )
        parameter = by_name[name]
        # As torch's own `load_state_dict` does: the step count is on the device only where a kernel reads it there.
        counted = any(groups[parameter].get(key) for key in ("fused", "capturable"))
        places = {"step": parameter.device if counted else torch.device("cpu")}
        optimizer.state[parameter] = {
            key: _unpack(value, tensors, places.get(key, parameter.device)) for key, value in kept.items()
        }
    for group, kept in zip(optimizer.param_groups, content["groups"], strict=True):
        for key, value in kept.items():
            device = now.device if isinstance(now := group.get(key), Tensor) else torch.device("cpu")
            group[key] = _unpack(value, tensors, device)


TENSOR, TUPLE, MAPPING, FLOAT = "tensor", "tuple", "mapping", "float"
"""Keys of what JSON has no word for."""


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON; its tensors go to `tensors`, named after where they stand."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, tuple):
        return {TUPLE: [_pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {MAPPING: [[key, _pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT: str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise PluginError(
        f"the optimiser keeps an object of type {type(value).__name__} as {name!r}; a checkpoint can hold tensors, "
        "numbers and text, in lists and mappings. Set train.optimizer to another."
    )


def _unpack(value: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors, device) for item in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return tensors[value[TENSOR]].to(device)
    if FLOAT in value:
        return float(value[FLOAT])
    if TUPLE in value:
        return tuple(_unpack(item, tensors, device) for item in value[TUPLE])
    return {key: _unpack(item, tensors, device) for key, item in value[MAPPING]}


def tensor_names(packed: Any) -> Iterator[str]:
    """Yield the names of the tensors in what `optimizer_state` returned as JSON."""
    if isinstance(packed, dict) and isinstance(name := packed.get(TENSOR), str):
        yield name
    elif isinstance(packed, (dict, list)):
        for item in packed.values() if isinstance(packed, dict) else packed:
            yield from tensor_names(item)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _by_shape(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, int]:
    """Return the first parameter of each shape and dtype, with how many have those."""
    first: dict[Any, nn.Parameter] = {}
    counts = Counter(first.setdefault((x.shape, x.dtype), x) for x in parameters)
    return dict(counts)


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"))
