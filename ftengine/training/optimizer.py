"""The optimiser of a run: how it is built and saved, and how much memory its state takes."""

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
"""Bytes of state per value if it is unknown before training: two float32 moments, as in Adam."""

SETTINGS = ("lr", "weight_decay")
"""Settings of a group that an optimiser must not change."""

Groups = list[dict[str, Any]]


def build_optimizer(component: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    """Build the optimiser of parameter groups.

    Raises:
        PluginError: it is no torch optimiser, leaves out a parameter, or has other settings for one.
    """
    expected = {parameter: group for group in groups for parameter in group["params"]}
    optimizer = component.build(groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise contract_error(component, "build", optimizer, "a torch.optim.Optimizer")
    built = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    if missing := len(expected.keys() - built.keys()):
        raise PluginError(
            f"{named(component)} leaves {missing:,} of {len(expected):,} parameters out. Pass all groups that it gets "
            "to the optimiser that it returns."
        )
    for parameter, group in expected.items():
        for key in (setting for setting in SETTINGS if setting in group):
            if float(actual := built[parameter].get(key, math.nan)) != float(group[key]):
                raise PluginError(
                    f"{named(component)} has {key} {actual:g} for a parameter of shape {tuple(parameter.shape)}, but "
                    f"the parameter's group has {group[key]:g}. Build the optimiser with the groups unchanged, each "
                    "with its own learning rate and weight decay."
                )
    return optimizer


def optimizer_bytes(component: Optimizer, groups: Groups) -> int:
    """Return the bytes of an optimiser's state, from a step on the meta device, which computes nothing.

    One parameter of each shape in a group represents all of them. If that step fails, the state counts as Adam's.
    """
    alike = [_by_shape(group["params"]) for group in groups]
    copies = [
        {**group, "params": [_on_meta(parameter) for parameter in kinds]}
        for group, kinds in zip(groups, alike, strict=True)
    ]
    times = [count for kinds in alike for count in kinds.values()]
    parameters = [parameter for group in copies for parameter in group["params"]]
    optimizer = build_optimizer(component, copies)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
        # Some need values, or kernels of real devices; most have created their state by then.
        with suppress(Exception):
            optimizer.step()
        for parameter in group["params"]:
            parameter.grad = None
    state = (optimizer.state.get(parameter) for parameter in parameters)
    return sum(
        count * (sum(tensor.nbytes for tensor in _tensors(tensors)) if tensors is not None else x.numel() * ADAM_BYTES)
        for x, tensors, count in zip(parameters, state, times, strict=True)
    )


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimiser's state: tensors by "PARAMETER|KEY", and the rest as JSON, which refers to the tensors.

    Raises:
        PluginError: the state of a parameter has something other than tensors, numbers and text.
    """
    tensors: dict[str, Tensor] = {}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    state = {}
    for parameter, values in optimizer.state.items():
        if (name := names.get(id(parameter))) is None:
            owner = "a tensor" if isinstance(parameter, Tensor) else repr(parameter)
            raise PluginError(
                f"the optimiser has state of {owner}, which is not a parameter of the model; a checkpoint can only "
                "hold the state of parameters and groups. Choose another train.optimizer."
            )
        state[name] = {key: _pack(value, f"{name}|{key}", tensors) for key, value in values.items()}
    groups = []
    for i, group in enumerate(optimizer.param_groups):
        own: dict[str, Any] = {}
        for key, value in group.items():
            packed: dict[str, Tensor] = {}
            with suppress(PluginError):  # other values are options, such as functions, which come from the recipe
                if key != "params":
                    own[key] = _pack(value, f"{i}||{key}", packed)
                    tensors |= packed
        groups.append(own)
    return tensors, {"state": state, "groups": groups}


def restore_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> None:
    """Restore a state from `optimizer_state`.

    Raises:
        RunError: the state is of other parameters than those in training.
    """
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    by_name = {name: parameter for name, parameter in module.named_parameters() if parameter in groups}
    for name, values in content["state"].items():
        if name not in by_name:
            raise RunError(
                f"the checkpoint has optimiser state for {name!r}, which is not trainable in this model. Restore the "
                "versions and plugins of the run, or start a new run with --set output=DIR."
            )
        parameter = by_name[name]
        # As in torch's `load_state_dict`: the step count is on the device only if a kernel reads it there.
        counted = any(groups[parameter].get(key) for key in ("fused", "capturable"))
        places = {"step": parameter.device if counted else torch.device("cpu")}
        optimizer.state[parameter] = {
            key: _unpack(value, tensors, places.get(key, parameter.device)) for key, value in values.items()
        }
    for group, values in zip(optimizer.param_groups, content["groups"], strict=True):
        for key, value in values.items():
            device = now.device if isinstance(now := group.get(key), Tensor) else torch.device("cpu")
            group[key] = _unpack(value, tensors, device)


TENSOR, TUPLE, MAPPING, FLOAT = "tensor", "tuple", "mapping", "float"
"""Keys that mark values without a JSON type."""


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON; its tensors are put into `tensors` under the path of their keys."""
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
        f"the optimiser has an object of type {type(value).__name__} as {name!r}; a checkpoint can hold tensors, "
        "numbers and text, in lists and mappings. Choose another train.optimizer."
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
    """Yield the names of the tensors in the JSON of `optimizer_state`."""
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
    """Return the first parameter of each shape and dtype, with the number of such parameters."""
    first: dict[Any, nn.Parameter] = {}
    counts = Counter(first.setdefault((x.shape, x.dtype), x) for x in parameters)
    return dict(counts)


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"))
